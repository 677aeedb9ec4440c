use proptest::prelude::*;
use serde_json::json;

use super::*;

fn data() -> serde_json::Value {
    json!({"Name": "alpine", "Size": 5, "Empty": "", "Tags": ["a", "b"], "Nothing": null,
        "Labels": {"x": "1", "y.z": "2", "in": {"ner": true}}, "Config": {"Cmd": ["sh"], "User": ""}})
}

fn run(template: &str) -> Result<String> {
    Template::parse(template)?.render(&data())
}

#[test]
fn templates_print_what_go_prints() {
    for (template, printed) in [
        ("", ""),
        ("plain", "plain"),
        ("{{.Name}}:{{.Size}}", "alpine:5"),
        ("{{ .Name }}", "alpine"),
        ("{{.Config.Cmd}} {{.Tags}}", "[sh] [a b]"),
        ("{{.Labels.x}} {{.Labels.none}} {{.Nothing}}", "1 <no value> <no value>"),
        ("{{.Labels.in.ner}}", "true"),
        ("{{index .Labels \"y.z\"}}", "2"),
        ("{{index .Tags 1}} {{index .Labels \"in\" \"ner\"}}", "b true"),
        ("{{json .Config}}", r#"{"Cmd":["sh"],"User":""}"#),
        ("{{.Tags | json}}", r#"["a","b"]"#),
        ("{{join .Tags \", \"}}", "a, b"),
        ("{{.Name | upper | printf \"%s!\"}}", "ALPINE!"),
        ("{{printf \"%s-%d\" .Name .Size}}", "alpine-5"),
        ("{{println .Name 1}}", "alpine 1\n"),
        ("{{print .Name \"x\" 1 2}}", "alpinex1 2"),
        ("{{range .Tags}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range $i, $e := .Tags}}{{$i}}={{$e}} {{end}}", "0=a 1=b "),
        ("{{range $e := .Tags}}{{$e}}{{$.Size}}{{end}}", "a5b5"),
        ("{{range $k, $v := .Labels}}{{$k}};{{end}}", "in;x;y.z;"),
        ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ("{{range .Tags}}{{if eq . \"b\"}}{{break}}{{end}}{{.}}{{end}}", "a"),
        ("{{range .Tags}}{{if eq . \"a\"}}{{continue}}{{end}}{{.}}{{end}}", "b"),
        ("{{if .Empty}}x{{else if .Name}}y{{else}}z{{end}}", "y"),
        ("{{if and .Name (gt .Size 4)}}big{{end}}", "big"),
        ("{{if or .Empty (not .Name)}}x{{else}}z{{end}}", "z"),
        ("{{or .Empty \"default\"}} {{and .Name .Empty}}", "default "),
        ("{{or .Name (index .Tags 9)}}", "alpine"),
        ("{{with .Config}}{{.Cmd}}{{$.Name}}{{end}}", "[sh]alpine"),
        ("{{with .Empty}}x{{else with .Name}}{{.}}{{else}}z{{end}}", "alpine"),
        ("{{with $x := .Name}}{{$x}}{{end}}", "alpine"),
        ("{{$x := .Name}}{{$x = \"other\"}}{{$x}}", "other"),
        ("{{$n := 0}}{{range .Tags}}{{$n = .}}{{end}}{{$n}}", "b"),
        ("a {{- .Size -}} b", "a5b"),
        ("a {{- /* comment */ -}} b{{/* another */}}", "ab"),
        ("{{- .Size}}", "5"),
        ("{{ -5 }}{{ 0x10 }}{{ 1.5 }}{{ 'A' }}{{ 1e3 }}", "-5161.5651000"),
        ("{{`raw\\n`}}{{\"a\\tb\\u00e9\\x41\"}}", "raw\\na\tbéA"),
        ("{{len .Tags}} {{len .Name}} {{len .Labels}}", "2 6 3"),
        ("{{slice .Name 1 3}} {{slice .Tags 1}}", "lp [b]"),
        (
            "{{eq .Name \"x\" \"alpine\"}} {{ne .Size 5}} {{lt 1 2}} {{ge \"b\" \"a\"}}",
            "true false true true",
        ),
        ("{{title \"hello big world\"}} {{lower \"ABC\"}}", "Hello Big World abc"),
        ("{{truncate .Name 3}}|{{pad .Name 1 2}}|{{pad .Empty 1 2}}", "alp| alpine  |"),
        ("{{split \"a:b\" \":\"}} {{index (split \"a:b\" \":\") 1}}", "[a b] b"),
        ("{{(index .Tags 0)}}{{(.Config).Cmd}}", "a[sh]"),
        ("{{html \"<a>\"}} {{urlquery \"a b&\"}} {{js \"'\"}}", "&lt;a&gt; a+b%26 \\'"),
        ("{{true}} {{nil | printf \"%v\"}}", "true <nil>"),
        ("{{\"}}\"}}", "}}"),
        ("{{eq .Nothing nil}}", "true"),
        ("{{ .Name\n}}", "alpine"),
        (r"{{.Name}}\t{{ .Size }}\n", "alpine\t5\n"),
        ("{{.Size | printf \"%05d|%-4s|%4v\" 7 .Name}}", "00007|alpine|   5"),
        ("{{with .Nothing}}x{{else}}-{{end}}", "-"),
        ("{{if and .Name (not .Nothing) (gt .Size 4)}}yes{{end}}", "yes"),
        ("{{or .Nothing .Name}} {{le 1 2}}", "alpine true"),
    ] {
        assert_eq!(run(template).unwrap_or_else(|e| panic!("{template}: {e:#}")), printed, "{template}");
    }
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (template, told) in [
        ("{{.Nme}}", "--format: column 3: no field .Nme; there are "),
        ("a\n {{.Name.X}}", "line 2, column 4: a string has no field .X"),
        ("{{.Nothing.X}}", "nothing is there to have a field .X"),
        ("{{.Name", "column 1: {{ without }}"),
        ("{{if .Name}}", "column 3: it has no end"),
        ("{{range .Tags}}{{else if .}}{{end}}", "does not belong to range"),
        ("{{end}}", "end or else without"),
        ("{{if .Name}}{{else}}{{else}}{{end}}", "a second else"),
        ("{{nope .Name}}", "no function \"nope\"; there are and or"),
        ("{{.Name .Size}}", "only a function takes arguments"),
        ("{{.Name | .Size}}", "must be a function"),
        ("{{.Name | 5}}", "must be a function"),
        ("{{$x}}", "undefined variable $x"),
        ("{{$x = 1}}", "undefined variable $x"),
        ("{{with $x := 1}}{{end}}{{$x}}", "undefined variable $x"),
        ("{{}}", "a value is missing"),
        ("{{(.Name}}", "expected \")\""),
        ("{{\"a}}", "a quoted text has no end"),
        ("{{'ab'}}", "one character"),
        ("{{1x}}", "\"1x\" is no number"),
        ("{{index .Tags 5}}", "5 is out of range: there are 2"),
        ("{{lt .Name 1}}", "have no order"),
        ("{{eq .Tags .Tags}}", "cannot be compared"),
        ("{{range .Name}}{{end}}", "range cannot go over a string"),
        ("{{break}}", "break outside of range"),
        ("{{define \"x\"}}{{end}}", "there is one template only"),
        ("{{.Name}", "unexpected '}'"),
        ("{{/* x }}", "a comment has no end"),
        ("{{.a\"b\"}}", "a space is missing"),
        ("{{upper .Size}}", "upper: wants a text, not a int"),
        ("{{join .Name}}", "join: wants a list"),
        ("{{\"\\q\"}}", "unknown escape"),
    ] {
        let error = report::line(&run(template).expect_err(template));
        assert!(error.contains(told), "{template}: {error}");
    }
    let deep = format!("{}1{}", "{{(".to_owned() + &"(".repeat(100_000), ")".repeat(100_000) + ")}}");
    assert!(report::line(&run(&deep).unwrap_err()).contains("nested deeper"));
    let deep = "{{if 1}}".repeat(100_000);
    assert!(report::line(&run(&deep).unwrap_err()).contains("nested deeper"));
}

#[test]
fn the_header_of_a_template_is_made_of_its_fields_names() {
    let names = json!({"ID": "IMAGE ID", "Tags": "TAGS"});
    let header = |text: &str| Template::parse(text).unwrap().header(&names).unwrap();
    assert_eq!(header("{{.ID}}\t{{join .Tags \",\"}}"), "IMAGE ID\tTAGS");
    assert_eq!(header("{{.ID | lower}} {{truncate .ID 3}}"), "IMAGE ID IMAGE ID");
    assert_eq!(header("{{range .Tags}}{{.}}{{end}}"), "TAGS");
}

proptest! {
    #[test]
    fn fuzz_no_template_panics(text in "(\\{\\{|\\}\\}|\\.|\\$|[a-z]{1,3}|range|if|else|end|with|:=|=|,|\\(|\\)|\\||\"|`|'|-| |[0-9]|é|/\\*|\\*/|\\.Name|\\.Tags|printf|slice|index|%){0,30}") {
        if let Ok(template) = Template::parse(&text) {
            template.render(&data()).unwrap_or_default();
        }
    }
}
