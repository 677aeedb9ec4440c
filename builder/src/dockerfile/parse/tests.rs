use proptest::prelude::*;

use super::*;

fn source(text: &str) -> Source {
    Source::new("Dockerfile", text)
}

/// The instructions of a stage.
fn stage(text: &str) -> Vec<Instruction> {
    let text = format!("FROM scratch\n{text}\n");
    let mut file = parse(&source(&text)).unwrap_or_else(|p| panic!("{}", source(&text).error(p)));
    file.stages.remove(0).instructions
}

fn one(text: &str) -> Kind {
    let mut all = stage(text);
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0).kind
}

fn texts<'a>(words: impl IntoIterator<Item = &'a Word>) -> Vec<&'a str> {
    words.into_iter().map(|w| w.text.as_str()).collect()
}

fn text(word: &Option<Word>) -> Option<&str> {
    word.as_ref().map(|w| w.text.as_str())
}

fn shell(run: &Run) -> &str {
    match &run.command {
        Command::Shell(word) => &word.text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn stages_begin_with_from() {
    let text = "ARG V=1 W\nFROM --platform=$BUILDPLATFORM golang:${V} AS Build\nRUN make\nfrom build\nFROM a as b.c-d_1\n";
    let file = parse(&source(text)).unwrap();
    assert_eq!(file.globals.len(), 1);
    let stages: Vec<_> = file
        .stages
        .iter()
        .map(|s| (s.base.text.as_str(), super::tests::text(&s.platform), super::tests::text(&s.name)))
        .collect();
    assert_eq!(
        stages,
        [
            ("golang:${V}", Some("$BUILDPLATFORM"), Some("build")),
            ("build", None, None),
            ("a", None, Some("b.c-d_1"))
        ]
    );
    assert_eq!(file.stages[0].instructions.len(), 1);
    assert_eq!(&text[file.stages[0].instructions[0].span.clone()], "RUN make");
}

#[test]
fn commands_are_arrays_or_for_the_shell() {
    let exec = |words: &[&str]| Command::Exec(words.iter().map(|w| (*w).to_owned()).collect());
    for (text, expected) in [
        (r#"CMD ["a", "b c"]"#, Ok(exec(&["a", "b c"]))),
        (r#"CMD   [ "a\n" ]  "#, Ok(exec(&["a\n"]))),
        ("CMD []", Ok(exec(&[]))),
        ("CMD a 'b c' $D", Err("a 'b c' $D")),
        ("CMD ['a']", Err("['a']")),
        ("CMD [ -e /x ] && y", Err("[ -e /x ] && y")),
        ("CMD", Err("")),
        ("CMD a \\\n  b", Err("a   b")),
    ] {
        match (one(text), expected) {
            (Kind::Cmd(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Kind::Cmd(Command::Shell(found)), Err(expected)) => assert_eq!(found.text, expected, "{text}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
}

#[test]
fn runs_have_mounts_and_heredocs() {
    let Kind::Run(run) = one(
        "RUN --mount=type=cache,target=/c --network=none --mount=type=secret,id=s --security=sandbox \\\n  make --flag\n",
    ) else {
        panic!()
    };
    assert_eq!(run.mounts.len(), 2);
    assert_eq!(run.mounts[1].options[1], ("id".to_owned(), Some("s".to_owned())));
    assert_eq!((text(&run.network), text(&run.security)), (Some("none"), Some("sandbox")));
    assert!(matches!(run.command, Command::Shell(w) if w.text == "make --flag"));
    let Kind::Run(run) = one("RUN <<EOF\na\nb\nEOF") else { panic!() };
    assert_eq!(run.heredocs[0].content, "a\nb\n");
    assert!(matches!(run.command, Command::Shell(w) if w.text == "<<EOF"));
}

#[test]
fn files_come_from_paths_and_heredocs() {
    let Kind::Copy(copy) = one(
        "COPY --from=build --chown=1:2 --chmod=u+x --link --parents=false --exclude=*.o --exclude=b a\t b  <<E /c\nx\nE",
    ) else {
        panic!()
    };
    assert_eq!((text(&copy.stage), copy.parents, copy.files.link), (Some("build"), false, true));
    assert_eq!((text(&copy.files.chown), text(&copy.files.chmod)), (Some("1:2"), Some("u+x")));
    assert_eq!(texts(&copy.files.exclude), ["*.o", "b"]);
    assert_eq!(copy.files.to.text, "/c");
    let from: Vec<_> = copy
        .files
        .from
        .iter()
        .map(|o| match o {
            Origin::Path(word) => word.text.as_str(),
            Origin::Heredoc(h) => h.content.as_str(),
        })
        .collect();
    assert_eq!(from, ["a", "b", "x\n"]);
    let Kind::Add(add) =
        one(r#"ADD --checksum=sha256:ab --keep-git-dir --unpack=false ["a b", "c", "/d e/"]"#)
    else {
        panic!()
    };
    assert_eq!((text(&add.checksum), add.keep_git_dir, add.unpack), (Some("sha256:ab"), true, Some(false)));
    assert_eq!(add.files.to.text, "/d e/");
    assert!(matches!(&add.files.from[0], Origin::Path(w) if w.text == "a b"));
}

#[test]
fn names_have_values() {
    let pairs = |kind: Kind| match kind {
        Kind::Env(pairs) | Kind::Label(pairs) => {
            pairs.into_iter().map(|(n, v)| (n.text, v.text)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    for (text, expected) in [
        ("ENV a=1 b='2 3' c=\\ x", &[("a", "1"), ("b", "'2 3'"), ("c", "\\ x")][..]),
        ("ENV a b  c=d", &[("a", "b  c=d")]),
        ("ENV a= b=\"\"", &[("a", ""), ("b", "\"\"")]),
        ("LABEL \"a b\"=c d=e=f", &[("\"a b\"", "c"), ("d", "e=f")]),
        ("LABEL a=1 \\\n   b=2", &[("a", "1"), ("b", "2")]),
    ] {
        let expected: Vec<_> = expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        assert_eq!(pairs(one(text)), expected, "{text}");
    }
    let Kind::Arg(args) = one("ARG a b=1 c=") else { panic!() };
    let args: Vec<_> = args.iter().map(|(n, v)| (n.text.as_str(), text(v))).collect();
    assert_eq!(args, [("a", None), ("b", Some("1")), ("c", Some(""))]);
}

#[test]
fn the_others() {
    let all = stage(
        "EXPOSE 80 443/tcp $P\nVOLUME /a /b\nVOLUME [\"/c d\"]\nUSER a:b\nWORKDIR /a b\nSTOPSIGNAL 9\nMAINTAINER me <a@b>\n\
         SHELL [\"/bin/bash\", \"-c\"]\nONBUILD RUN <<E cat\nx\nE\nonbuild copy . /x",
    );
    let kinds: Vec<_> = all.iter().map(|i| &i.kind).collect();
    assert!(matches!(kinds[0], Kind::Expose(words) if texts(words) == ["80", "443/tcp", "$P"]));
    assert!(matches!(kinds[1], Kind::Volume(words) if texts(words) == ["/a", "/b"]));
    assert!(matches!(kinds[2], Kind::Volume(words) if texts(words) == ["/c d"]));
    assert!(matches!(kinds[3], Kind::User(word) if word.text == "a:b"));
    assert!(matches!(kinds[4], Kind::Workdir(word) if word.text == "/a b"));
    assert!(matches!(kinds[5], Kind::Stopsignal(word) if word.text == "9"));
    assert!(matches!(kinds[6], Kind::Maintainer(word) if word.text == "me <a@b>"));
    assert!(matches!(kinds[7], Kind::Shell(words) if words == &["/bin/bash", "-c"]));
    let Kind::Onbuild(text, inner) = kinds[8] else { panic!() };
    assert_eq!(text, "RUN <<E cat\nx\nE");
    let Kind::Run(again) = trigger(&source(text)).unwrap().kind else { panic!() };
    let Kind::Run(inner) = &inner.kind else { panic!() };
    assert_eq!((shell(&again), &again.heredocs[0].content), (shell(inner), &inner.heredocs[0].content));
    assert!(
        matches!(kinds[9], Kind::Onbuild(text, inner) if text == "copy . /x" && matches!(inner.kind, Kind::Copy(_)))
    );
}

#[test]
fn health_is_checked_by_a_command() {
    assert_eq!(one("HEALTHCHECK none"), Kind::Healthcheck(Healthcheck::None));
    let Kind::Healthcheck(Healthcheck::Test {
        command,
        interval,
        timeout,
        start_period,
        start_interval,
        retries,
    }) = one("HEALTHCHECK --interval=1m30s --timeout=500ms --retries=4 --start-period=0 CMD [\"a\"]")
    else {
        panic!()
    };
    assert_eq!(command, Command::Exec(vec!["a".to_owned()]));
    assert_eq!((interval, timeout, retries), (Some(90_000_000_000), Some(500_000_000), Some(4)));
    assert_eq!((start_period, start_interval), (Some(0), None));
    for (text, expected) in [
        ("1h", Some(3_600_000_000_000)),
        ("1.5s", Some(1_500_000_000)),
        ("2", None),
        ("s", None),
        ("", None),
        ("1d", None),
    ] {
        assert_eq!(nanoseconds(text), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_is_marked() {
    for (text, marked, message, hint) in [
        ("", "", "there is no FROM", "FROM scratch"),
        ("# only this\n", "", "there is no FROM", "FROM scratch"),
        ("RUN a\nFROM b", "RUN", "RUN before the first FROM", "only ARG"),
        ("FROM", "FROM", "FROM needs an image", "FROM ["),
        ("FROM a b", "a b", "one image", "FROM ["),
        ("FROM a AS 1x", "1x", "\"1x\" is no name for a stage", "a letter"),
        ("FROM a\nRUNN x", "RUNN", "unknown instruction \"RUNN\"", "RUN?"),
        ("FROM a\nINCLUDE x", "INCLUDE", "unknown instruction \"INCLUDE\"", "known are ADD, "),
        ("FROM --plattform=x a", "--plattform", "FROM has no flag --plattform", "--platform?"),
        ("FROM a\nCOPY --form=b c d", "--form", "COPY has no flag --form", "--from?"),
        ("FROM a\nCMD --x y", "--x", "CMD has no flag --x", "CMD has no flags"),
        ("FROM a\nCOPY --from b c", "--from", "--from needs a value", "--from=…"),
        ("FROM a\nCOPY --from=b --from=c d e", "--from=c", "second time", ""),
        ("FROM a\nCOPY --link=maybe d e", "--link=maybe", "--link is true or false, not \"maybe\"", ""),
        ("FROM a\nCOPY b", "b", "COPY needs a destination, too", "COPY SOURCE"),
        ("FROM a\nADD", "ADD", "ADD needs a source and a destination", "ADD SOURCE"),
        ("FROM a\nCOPY b <<E\nE", "<<E", "a heredoc is no destination", ""),
        ("FROM a\nRUN --network=hots x", "hots", "--network \"hots\"", "host?"),
        (
            "FROM a\nRUN --mount=type=cahe,target=/x y",
            "type=cahe,target=/x",
            "unknown type \"cahe\"",
            "cache?",
        ),
        ("FROM a\nRUN", "RUN", "RUN needs a command", ""),
        ("FROM a\nRUN <<E\nx", "<<E", "heredoc E has no end", "a line with"),
        ("FROM a\nENV", "ENV", "ENV needs a name and a value", "ENV NAME"),
        ("FROM a\nENV b", "b", "a value is missing", "ENV NAME"),
        ("FROM a\nENV b=c d", "d", "d has no =", "a value with blanks"),
        ("FROM a\nENV =c", "=c", "a name is missing", ""),
        ("FROM a\nARG", "ARG", "ARG needs a name", ""),
        ("FROM a\nCMD [1]", "[1]", "strings and nothing else", ""),
        ("FROM a\nSHELL /bin/sh", "SHELL /bin/sh", "SHELL needs an array", "SHELL ["),
        ("FROM a\nONBUILD FROM b", "FROM", "FROM cannot be a trigger", ""),
        ("FROM a\nONBUILD ONBUILD RUN b", "ONBUILD", "ONBUILD cannot be a trigger", ""),
        ("FROM a\nONBUILD RUNN b", "RUNN", "unknown instruction", "RUN?"),
        ("FROM a\nHEALTHCHECK x", "x", "HEALTHCHECK is NONE", "HEALTHCHECK ["),
        ("FROM a\nHEALTHCHECK --interval=x CMD y", "x", "it is no duration", "as in"),
        ("FROM a\nHEALTHCHECK --interval=1us CMD y", "1us", "less than a millisecond", ""),
        ("FROM a\nHEALTHCHECK --retries=-1 CMD y", "-1", "--retries is a number", ""),
        ("FROM a\nHEALTHCHECK --retries=1 NONE", "--retries=1", "NONE has no flags", ""),
        ("FROM a\nHEALTHCHECK CMD", "CMD", "needs a command", ""),
        ("FROM a\nUSER", "USER", "USER needs a user", ""),
        ("FROM a\nVOLUME []", "VOLUME []", "VOLUME needs a path", ""),
        ("FROM a\nRUN b && \\\n  c\nENV \\\n  d=e \\\n  f\n", "f", "f has no =", ""),
    ] {
        let problem = parse(&source(text)).expect_err(text);
        assert_eq!(&text[problem.span.clone()], marked, "{text}");
        assert!(problem.message.contains(message), "{text}: {}", problem.message);
        assert!(problem.hint.unwrap_or_default().starts_with(hint), "{text}");
    }
}

const WORDS: &str = "(FROM |RUN |COPY |ENV |ONBUILD |HEALTHCHECK |CMD |ARG |SHELL |--mount=|--from=|type=|cache|,|=|a|b| |\\\\\n|\n|\
    <<E|<<-'F'|E|\\[|\\]|\"|'|\\$|#|\t|é|\r|\u{feff}|# escape=`|`){0,40}";

proptest! {
    #[test]
    fn fuzz_dockerfile(text in WORDS) {
        let text = format!("FROM a\n{text}");
        let source = source(&text);
        match parse(&source) {
            Ok(file) => for stage in &file.stages {
                for instruction in &stage.instructions {
                    prop_assert!(text.get(instruction.span.clone()).is_some());
                }
            }
            Err(problem) => {
                prop_assert!(problem.span.end <= text.len());
                prop_assert!(!report::line(&source.error(problem)).is_empty());
            }
        }
    }

    #[test]
    fn fuzz_dockerfile_bytes(text in "\\PC{0,120}") {
        let _parsed = parse(&source(&text));
    }
}
