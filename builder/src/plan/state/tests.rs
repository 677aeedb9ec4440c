use image::manifest::RootFs;

use super::*;
use crate::dockerfile::parse::{parse, trigger};
use crate::dockerfile::source::Source;

struct Walked {
    config: Config,
    steps: Vec<Step>,
}

impl Walked {
    fn history(&self) -> Vec<&str> {
        self.steps.iter().map(|s| s.history.as_str()).collect()
    }
}

/// The instructions of a stage on a base, triggers first.
fn walk(base: Option<&Config>, text: &str) -> Result<Walked, (String, Problem)> {
    let text = format!("FROM base\n{text}\n");
    let inner = || -> Result<Walked, Problem> {
        let file = parse(&Source::new("x", text.as_str()))?;
        let given = Given::default();
        let globals = Globals::read(&file, &given)?;
        let (mut state, triggers) = State::new(base, &given, &globals, file.directives.escape);
        let triggers = triggers
            .iter()
            .map(|t| trigger(&Source::new("trigger", t.as_str())).unwrap())
            .collect::<Vec<_>>();
        let mut steps = Vec::new();
        for instruction in triggers.iter().chain(&file.stages[0].instructions) {
            steps.push(state.apply(instruction)?);
        }
        let mut config =
            Config { rootfs: RootFs::default(), config: Some(state.execution), ..Config::default() };
        if let Some(author) = state.author {
            config.other.insert("author".to_owned(), json!(author));
        }
        Ok(Walked { config, steps })
    };
    inner().map_err(|problem| (text.clone(), problem))
}

fn good(text: &str) -> Walked {
    walk(None, text)
        .unwrap_or_else(|(text, problem)| panic!("{}", Source::new("x", text).excerpt(&problem.span)))
}

fn run(text: &str) -> Run {
    match good(text).steps.pop().map(|s| s.work) {
        Some(Work::Run(run)) => *run,
        other => panic!("{other:?}"),
    }
}

fn files(text: &str) -> Bring {
    match good(text).steps.pop().map(|s| s.work) {
        Some(Work::Files(bring)) => *bring,
        other => panic!("{other:?}"),
    }
}

/// What docker's own builder (28.5) made of the same lines; it leaves `WORKDIR` with a trailing mark of its own, and sorts ports
/// otherwise.
#[test]
fn configs_as_docker_makes_them() {
    let base = good(
        "CMD [\"base-cmd\"]\nEXPOSE 1/udp\nVOLUME /basevol\nLABEL keep=1 change=2\nUSER 5:6\nWORKDIR /base/dir\n\
         STOPSIGNAL SIGUSR1\nHEALTHCHECK --interval=5s --retries=2 CMD base check\nSHELL [\"/bin/bash\",\"-c\"]\n\
         ONBUILD LABEL trig=$X\nONBUILD USER onb",
    );
    let health = &base.config.config.as_ref().unwrap().other["Healthcheck"];
    assert_eq!(
        *health,
        json!({"Test": ["CMD-SHELL", "base check"], "Interval": 5_000_000_000_u64, "Retries": 2})
    );
    let made = walk(
        Some(&base.config),
        "ARG P=8080 D=sub\nEXPOSE 80 443/tcp $P-8082/UDP 9/sctp\nVOLUME [\"/a b\", \"/c/\"]\nVOLUME /x $D\n\
         LABEL change=3 \"sp ace\"=\"q r\" l=$D\nWORKDIR rel\nWORKDIR ../up/$D/\nWORKDIR /abs\nUSER 7\nSTOPSIGNAL 9\n\
         HEALTHCHECK --timeout=1m30s CMD [\"c\",\"d\"]\nENV A=b\nENTRYPOINT exec $A \"x\"\nCMD $A --flag\nCMD [\"j\",\"$A\"]\n\
         MAINTAINER me <x@y>\nONBUILD RUN echo hi\nSHELL [\"/bin/zsh\",\"-o\",\"pipefail\",\"-c\"]\nCMD shell form\n\
         COPY --chmod=755 Dockerfile /x/\nCOPY <<E1 <<E2 /y/\na\nE1\nb\nE2\nADD --chown=1:2 Dockerfile $D/f",
    )
    .map_err(|(_, problem)| problem)
    .unwrap();
    let config = serde_json::to_value(made.config.config.as_ref().unwrap()).unwrap();
    assert_eq!(
        config,
        json!({
            "User": "7",
            "ExposedPorts": {"1/udp": {}, "443/tcp": {}, "80/tcp": {}, "8080/udp": {}, "8081/udp": {}, "8082/udp": {}, "9/sctp": {}},
            "Env": [format!("PATH={PATH}"), "A=b"],
            "Entrypoint": ["/bin/bash", "-c", "exec $A \"x\""],
            "Cmd": ["/bin/zsh", "-o", "pipefail", "-c", "shell form"],
            "Volumes": {"/a b": {}, "/basevol": {}, "/c/": {}, "/x": {}, "sub": {}},
            "WorkingDir": "/abs",
            "Labels": {"change": "3", "keep": "1", "l": "sub", "sp ace": "q r", "trig": ""},
            "StopSignal": "9",
            "Healthcheck": {"Test": ["CMD", "c", "d"], "Timeout": 90_000_000_000_u64},
            "OnBuild": ["RUN echo hi"],
            "Shell": ["/bin/zsh", "-o", "pipefail", "-c"],
        })
    );
    assert_eq!(made.config.other["author"], "me <x@y>");
    assert_eq!(
        made.history(),
        [
            "LABEL trig=",
            "USER onb",
            "ARG P=8080 D=sub",
            "EXPOSE [80/tcp 443/tcp 8080/udp 8081/udp 8082/udp 9/sctp]",
            "VOLUME [/a b /c/]",
            "VOLUME [/x sub]",
            "LABEL change=3 sp ace=q r l=sub",
            "WORKDIR /base/dir/rel",
            "WORKDIR /base/dir/up/sub",
            "WORKDIR /abs",
            "USER 7",
            "STOPSIGNAL 9",
            "HEALTHCHECK {\"Test\":[\"CMD\",\"c\",\"d\"],\"Timeout\":90000000000}",
            "ENV A=b",
            "ENTRYPOINT [\"/bin/bash\" \"-c\" \"exec $A \\\"x\\\"\"]",
            "CMD [\"/bin/bash\" \"-c\" \"$A --flag\"]",
            "CMD [\"j\" \"$A\"]",
            "MAINTAINER me <x@y>",
            "ONBUILD RUN echo hi",
            "SHELL [/bin/zsh -o pipefail -c]",
            "CMD [\"/bin/zsh\" \"-o\" \"pipefail\" \"-c\" \"shell form\"]",
            "COPY --chmod=755 Dockerfile /x/",
            "COPY <<E1 <<E2 /y/",
            "ADD --chown=1:2 Dockerfile sub/f",
        ]
    );
    assert_eq!(made.steps[7].work, Work::Folder { path: "/base/dir/rel".into(), user: Some("onb".into()) });
}

#[test]
fn an_entry_point_takes_the_bases_command_away() {
    let base = good("CMD [\"a\"]").config;
    for (text, cmd) in [
        ("ENTRYPOINT [\"e\"]", None),
        ("CMD [\"b\"]\nENTRYPOINT [\"e\"]", Some("b")),
        ("ENTRYPOINT [\"e\"]\nCMD [\"b\"]", Some("b")),
        ("LABEL x=1", Some("a")),
    ] {
        let made = walk(Some(&base), text).map_err(|(_, p)| p).unwrap();
        let found = made.config.config.unwrap().cmd.map(|c| c.join(" "));
        assert_eq!(found.as_deref(), cmd, "{text}");
    }
}

#[test]
fn commands_run_as_the_stage_has_it() {
    let found = run(
        "ENV A=1\nARG B=2 C\nUSER u:g\nWORKDIR /w\nRUN --network=none --security=insecure --mount=type=tmpfs,target=t x $B",
    );
    assert_eq!(found.args, ["/bin/sh", "-c", "x $B"]);
    let environment: Vec<_> = found.environment.iter().map(|(n, v)| format!("{n}={v}")).collect();
    assert_eq!(environment, [&format!("PATH={PATH}"), "A=1", "B=2"]);
    assert_eq!((found.user.as_deref(), found.cwd.as_str()), (Some("u:g"), "/w"));
    assert_eq!((found.network.as_deref(), found.insecure), (Some("none"), true));
    assert_eq!(found.mounts, [Mount::Tmpfs { target: "/w/t".into(), size: None }]);
    assert_eq!(run("RUN --network=default [\"a\", \"$B\"]").args, ["a", "$B"]);
    let made = good("ARG B=2\nENV A=1\nRUN x\nENV B=3\nRUN [\"y\", \"z\"]");
    assert_eq!(made.history()[2], "RUN |1 B=2 /bin/sh -c x");
    assert_eq!(made.history()[4], "RUN y z");
}

#[test]
fn heredocs_are_scripts_or_go_to_the_shell() {
    assert_eq!(run("RUN <<E\na\n$b\nE").args, ["/bin/sh", "-c", "a\n$b\n"]);
    assert_eq!(run("SHELL [\"bash\", \"-c\"]\nRUN <<-'E'\n\ta\nE").args, ["bash", "-c", "a\n"]);
    let script = run("RUN <<run\n#!/usr/bin/env python3\nprint()\nrun");
    assert_eq!(script.args, ["/dev/pipes/run"]);
    assert_eq!(script.script.unwrap().1, "#!/usr/bin/env python3\nprint()\n");
    assert_eq!(run("RUN cat <<A - <<\"B\" >f\n1\nA\n2\nB").args[2], "cat <<A - <<\"B\" >f\n1\nA\n2\nB");
}

#[test]
fn files_go_to_where_the_stage_is() {
    for (text, to) in [
        ("COPY a b", "/b"),
        ("WORKDIR /w\nCOPY a b/", "/w/b/"),
        ("WORKDIR /w\nCOPY a .", "/w/"),
        ("WORKDIR /w\nCOPY a ./x/..", "/w"),
        ("WORKDIR /w\nCOPY a /", "/"),
        ("WORKDIR /w\nCOPY a ../../..", "/"),
        ("ENV D=/d\nCOPY a $D/./e", "/d/e"),
    ] {
        assert_eq!(files(text).to, to, "{text}");
    }
    let found = files(
        "ARG V=1\nCOPY --from=x --chown=$V:2 --chmod=0$V --link --exclude=$V a-$V <<n <<\"q\" /d/\n$V \\$V\nn\n$V\nq\n",
    );
    assert_eq!((found.chown.as_deref(), found.chmod.as_deref(), found.link), (Some("1:2"), Some("01"), true));
    let file =
        |name: &str, content: &str| Origin::File { name: name.to_owned(), content: content.to_owned() };
    assert_eq!(found.sources, [Origin::Path("a-1".to_owned()), file("n", "1 $V\n"), file("q", "$V\n")]);
    assert_eq!(found.exclude, ["1"]);
    assert_eq!(found.how, How::Copy { from: Some("x".to_owned()), parents: false });
}

#[test]
fn ports_are_single_ones() {
    for (text, expected) in [
        ("80", Ok(&["80/tcp"][..])),
        ("80/UDP", Ok(&["80/udp"])),
        ("8000-8002", Ok(&["8000/tcp", "8001/tcp", "8002/tcp"])),
        ("0", Ok(&["0/tcp"])),
        ("70000", Err("no port")),
        ("2-1", Err("ends before it begins")),
        ("80/http", Err("the protocols are")),
        ("8080:80", Err("when the image is run")),
        ("", Err("no port")),
    ] {
        match (expose(text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{text}: {found}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
}

#[test]
fn signals_have_names_and_numbers() {
    for text in ["9", "64", "TERM", "SIGTERM", "sigquit", "SIGRTMIN", "RTMIN+3", "SIGRTMAX-14"] {
        assert!(is_signal(text), "{text}");
    }
    for text in ["", "0", "65", "-1", "SIG", "SIGNO", "RTMIN+16", "RTMAX+1", "SIGSIGTERM"] {
        assert!(!is_signal(text), "{text}");
    }
}

#[test]
fn what_is_wrong_is_marked() {
    for (text, marked, message) in [
        ("STOPSIGNAL SIGNO", "SIGNO", "this is no signal"),
        ("USER $NONE", "$NONE", "it is empty"),
        ("WORKDIR ${NONE}", "${NONE}", "it is empty"),
        ("EXPOSE 80/x", "80/x", "the protocols are"),
        ("COPY a $NONE", "$NONE", "the destination is empty"),
        ("COPY ${A:?no A} b", "${A:?no", "missing"),
        ("RUN --mount=type=cache,target=/c,mode=$X9 y", "type=cache,target=/c,mode=$X9", ""),
        ("ENV \"\"=1", "\"\"", "this is no name"),
        ("COPY <<E /x\n${A:?set it}\nE", "<<E", "A: set it"),
    ] {
        match walk(None, text) {
            Err((text, problem)) => {
                assert_eq!(&text[problem.span.clone()], marked, "{text}");
                assert!(problem.message.contains(message), "{text}: {}", problem.message);
            }
            Ok(_) => assert!(message.is_empty(), "{text}"),
        }
    }
}
