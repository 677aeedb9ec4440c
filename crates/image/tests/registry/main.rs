//! Registries that misbehave, and one that does not.

mod real;
mod server;

use std::sync::Mutex;
use std::time::Duration;

use image::Reference;
use image::digest::Digest;
use image::manifest::{Descriptor, MANIFEST_MOST, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use image::registry::client::{Repository, Settings};
use image::registry::credentials::Credentials;
use image::store::{Store, Unpack};
use image::transfer::{Choice, Conversion, Options, Source, Target, copy};
use serde_json::json;
use server::{Answer, Asked, Server};

/// How long was waited, without waiting.
static WAITED: Mutex<Vec<Duration>> = Mutex::new(Vec::new());

fn note(time: Duration) {
    WAITED.lock().unwrap().push(time);
}

fn settings() -> Settings {
    Settings { pause: note, ..Settings::plain() }
}

fn with_login() -> Settings {
    let login = Credentials::Password { user: "ann".to_owned(), password: "secret".to_owned() };
    Settings { login: Some(login), ..settings() }
}

fn repository(settings: &Settings, server: &Server, rest: &str) -> Repository {
    let reference: Reference = format!("{}/{rest}", server.address).parse().unwrap();
    settings.repository(&reference).unwrap()
}

fn options() -> Options<'static> {
    Options { choice: Choice::All, conversion: Conversion::default(), jobs: 1, listener: &|_| {} }
}

/// An image of one layer of half a megabyte: manifest, config, layer.
fn image() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut layer = vec![0; 512];
    layer[..4].copy_from_slice(b"file");
    layer[100..107].copy_from_slice(b"0000644");
    layer[108..115].copy_from_slice(b"0000000");
    layer[116..123].copy_from_slice(b"0000000");
    layer[124..135].copy_from_slice(b"00002000000");
    layer[136..147].copy_from_slice(b"00000000000");
    layer[148..156].copy_from_slice(b"        ");
    layer[156] = b'0';
    let sum: u32 = layer.iter().map(|b| u32::from(*b)).sum();
    layer[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    layer.extend((0..512 << 10).map(|n: u32| (n ^ (n >> 8)) as u8));
    layer.extend([0; 1024]);
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}});
    let config = config.to_string().into_bytes();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": Descriptor::of(OCI_CONFIG, &config), "layers": [Descriptor::of(OCI_LAYER, &layer)]});
    (manifest.to_string().into_bytes(), config, layer)
}

/// A registry that has the image as `x:1`, and does nothing wrong.
fn good(asked: &Asked) -> Answer {
    let (manifest, config, layer) = image();
    for (blob, kind) in [(config, "blobs"), (layer, "blobs"), (manifest.clone(), "manifests")] {
        if asked.is("GET", &format!("/v2/x/{kind}/{}", Digest::of(&blob))) {
            return Answer::new(200, blob).with("content-type", OCI_MANIFEST);
        }
    }
    if asked.is("GET", "/v2/x/manifests/1") {
        return Answer::new(200, manifest).with("content-type", OCI_MANIFEST);
    }
    Answer::new(404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"not known"}]}"#)
}

/// Pull `x:1` into a new store.
fn pull(settings: &Settings, server: &Server) -> anyhow::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let source = repository(settings, server, "x:1");
    let target = store.receiving(vec![Some("x:1".parse().unwrap())], Unpack::Later)?;
    let done = copy(&source, &target, &options());
    drop(target);
    let whole = store.images().unwrap().len() == 1;
    assert_eq!(done.is_ok(), whole, "an image is there whole or not at all");
    if !whole {
        assert!(store.blobs().unwrap().is_empty() && store.layers().unwrap().is_empty());
    }
    done.map(drop)
}

fn layer_path() -> String {
    format!("/v2/x/blobs/{}", Digest::of(&image().2))
}

#[test]
fn a_good_registry_is_asked_no_more_than_needed() {
    let server = Server::new(|asked, _| good(asked));
    pull(&settings(), &server).unwrap();
    let paths: Vec<_> = server.asked().iter().map(|a| a.path.clone()).collect();
    assert_eq!(paths.len(), 3, "{paths:?}");
    assert!(server.asked().iter().all(|a| a.header("user-agent").starts_with("berth/")));
    assert!(server.asked().iter().all(|a| a.header("authorization").is_empty()));
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    for knows_ranges in [true, false] {
        let server = Server::new(move |asked, _| {
            if !asked.is("GET", &layer_path()) {
                return good(asked);
            }
            let (_, _, layer) = image();
            let range = asked.header("range").trim_start_matches("bytes=").trim_end_matches('-');
            let from: usize = range.parse().unwrap_or(0);
            if !knows_ranges {
                return Answer::new(200, layer).cut(if from == 0 { 100_000 } else { usize::MAX });
            }
            let status = if from == 0 { 200 } else { 206 };
            let end = layer.len() - 1;
            let answer = Answer::new(status, &layer[from..]).cut(100_000);
            answer.with("content-range", format!("bytes {from}-{end}/{}", end + 1))
        });
        pull(&settings(), &server).unwrap();
        let ranges = server.asked().iter().filter(|a| !a.header("range").is_empty()).count();
        assert_eq!(ranges, if knows_ranges { 5 } else { 1 });
    }
}

/// What is wrong with an answer, and how it is told.
#[test]
fn wrong_answers_are_refused() {
    type Wrong = fn(&Asked) -> Option<Answer>;
    let cases: Vec<(&str, Wrong)> = vec![
        ("is not sha256:00", |a| {
            let zero = format!("sha256:{}", "0".repeat(64));
            a.is("GET", "/v2/x/manifests/1").then(|| good(a).with("docker-content-digest", zero))
        }),
        ("calls itself", |a| {
            let index = "application/vnd.oci.image.index.v1+json";
            a.is("GET", "/v2/x/manifests/1").then(|| Answer::new(200, image().0).with("content-type", index))
        }),
        ("its content is that of", |a| {
            let mut layer = image().2;
            layer[600] ^= 1;
            a.is("GET", &layer_path()).then(|| Answer::new(200, layer))
        }),
        ("expected", |a| {
            a.is("GET", &layer_path()).then(|| Answer::new(200, [image().2, vec![0; 9]].concat()))
        }),
        ("cut off after", |a| a.is("GET", &layer_path()).then(|| Answer::new(200, image().2).cut(0))),
        ("another range", |a| {
            a.is("GET", &layer_path()).then(|| match a.header("range") {
                "" => Answer::new(200, image().2).cut(1000),
                _ => Answer::new(206, image().2).with("content-range", "bytes 5-9/10"),
            })
        }),
        ("404 Not Found: not known (NAME_UNKNOWN)", |a| {
            a.path
                .contains("manifests")
                .then(|| Answer::new(404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"not known"}]}"#))
        }),
        ("418", |a| a.path.contains("manifests").then(|| Answer::new(418, "<html>"))),
        ("more than 5 redirections", |a| {
            a.path.contains("manifests").then(|| Answer::new(307, "").with("location", "/v2/x/manifests/1"))
        }),
        ("redirected to nowhere", |a| a.path.contains("manifests").then(|| Answer::new(307, ""))),
        ("a location that is none", |a| {
            a.path.contains("manifests").then(|| Answer::new(307, "").with("location", "file:///etc/passwd"))
        }),
        ("503", |a| a.path.contains("manifests").then(|| Answer::new(503, ""))),
        ("authentication failed", |a| {
            a.path
                .contains("manifests")
                .then(|| Answer::new(401, "").with("www-authenticate", "Basic realm=x"))
        }),
        ("manifest", |a| {
            a.path.contains("manifests").then(|| Answer::new(200, "[]").with("content-type", OCI_MANIFEST))
        }),
        (" evil [31m", |a| {
            a.path
                .contains("manifests")
                .then(|| Answer::new(400, r#"{"errors":[{"code":"X","message":"\n\u001bevil\u001b[31m"}]}"#))
        }),
    ];
    for (reason, wrong) in cases {
        let server = Server::new(move |asked, _| wrong(asked).unwrap_or_else(|| good(asked)));
        let error = report::line(&pull(&settings(), &server).expect_err(reason));
        assert!(error.contains(reason) && !error.contains('\u{1b}'), "{reason}: {error}");
        assert!(server.asked().len() < 20, "{reason}: asked {} times", server.asked().len());
    }
}

#[test]
fn endless_answers_are_cut() {
    let endless = |status| Answer { length: None, endless: true, ..Answer::new(status, vec![b' '; 1 << 16]) };
    let server = Server::new(
        move |asked, _| if asked.path.contains("manifests") { endless(200) } else { good(asked) },
    );
    let error = report::line(&pull(&settings(), &server).unwrap_err());
    assert!(error.contains(&format!("more than {MANIFEST_MOST} bytes")), "{error}");
    let server =
        Server::new(move |asked, _| if asked.path.contains("blobs") { endless(200) } else { good(asked) });
    let error = report::line(&pull(&settings(), &server).unwrap_err());
    assert!(error.contains("its content is that of"), "{error}");
    let server = Server::new(
        move |asked, _| if asked.path.contains("manifests") { endless(400) } else { good(asked) },
    );
    let error = report::line(&pull(&settings(), &server).unwrap_err());
    assert!(error.contains("400"), "{error}");
}

#[test]
fn what_passes_is_tried_again_and_told_times_are_kept() {
    let server = Server::new(|asked, before| match before {
        0 => Answer::new(429, "").with("retry-after", 37),
        1 => Answer::new(503, ""),
        2 => Answer::new(500, ""),
        _ => good(asked),
    });
    pull(&settings(), &server).unwrap();
    assert_eq!(server.asked().len(), 6);
    assert!(WAITED.lock().unwrap().contains(&Duration::from_secs(37)));
    let server = Server::new(|_, _| Answer::new(429, "").with("retry-after", 86_400));
    let error = report::line(&pull(&settings(), &server).unwrap_err());
    assert!(error.contains("429"), "{error}");
    assert!(WAITED.lock().unwrap().iter().all(|w| *w <= Duration::from_secs(120)));
    assert_eq!(server.asked().len(), 5);
}

#[test]
fn a_token_is_asked_for_once_and_shown_to_no_other_host() {
    let other = Server::new(|_, _| Answer::new(200, image().2));
    let elsewhere = format!("http://{}/signed?secret=1", other.address);
    let tokens = Server::new(|asked, _| {
        assert_eq!(asked.header("authorization"), "Basic YW5uOnNlY3JldA==");
        assert!(
            asked.path.contains("service=reg%20istry") && asked.path.contains("scope=repository%3Ax%3Apull"),
            "{}",
            asked.path
        );
        Answer::new(200, r#"{"token":"tok"}"#)
    });
    let realm = format!(r#"Bearer realm="http://{}/token",service="reg istry""#, tokens.address);
    let server = Server::new(move |asked, _| {
        if asked.header("authorization") != "Bearer tok" {
            return Answer::new(401, "").with("www-authenticate", &realm);
        }
        if asked.is("GET", &layer_path()) {
            return Answer::new(307, "").with("location", &elsewhere);
        }
        good(asked)
    });
    pull(&with_login(), &server).unwrap();
    assert_eq!(tokens.asked().len(), 1);
    assert_eq!(other.asked().len(), 1);
    assert!(other.asked().iter().all(|a| a.header("authorization").is_empty()));
}

#[test]
fn refused_credentials_do_not_loop() {
    let tokens = Server::new(|_, _| Answer::new(200, r#"{"access_token":"tok"}"#));
    let realm = format!(r#"Bearer realm="http://{}/token""#, tokens.address);
    let server = Server::new(move |_, _| {
        Answer::new(401, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#).with("www-authenticate", &realm)
    });
    let e = pull(&with_login(), &server).unwrap_err();
    assert!(
        report::line(&e).contains("authentication failed: 401 Unauthorized: no (DENIED)"),
        "{}",
        report::line(&e)
    );
    assert!(report::hint(&e).unwrap().starts_with("berth-builder login 127.0.0.1:"));
    assert_eq!((server.asked().len(), tokens.asked().len()), (2, 1));
    assert!(server.asked().iter().all(|a| !a.header("authorization").contains("Basic")));
    let evil = Server::new(|_, _| Answer::new(200, r#"{"token":"a\r\nx: y"}"#));
    let realm = format!(r#"Bearer realm="http://{}/token""#, evil.address);
    let server = Server::new(move |_, _| Answer::new(401, "").with("www-authenticate", &realm));
    assert!(report::line(&pull(&with_login(), &server).unwrap_err()).contains("no token"));
}

/// A registry that takes uploads; what it does with the first bytes is `cut`'s to say.
fn uploads(cut: usize) -> Server {
    let came = Mutex::new(Vec::<u8>::new());
    let cuts = Mutex::new(0);
    Server::new(move |asked, _| {
        let mut came = came.lock().unwrap();
        let (_, _, layer) = image();
        match asked.method.as_str() {
            "HEAD" => Answer::new(404, ""),
            "POST" => {
                came.clear();
                Answer::new(202, "").with("location", "/v2/y/blobs/uploads/1?state=a")
            }
            "PATCH" => {
                let mut cuts = cuts.lock().unwrap();
                if *cuts == 0 && cut < layer.len() {
                    *cuts += 1;
                    came.extend(&asked.body[..cut]);
                    return Answer::new(502, "");
                }
                let range = asked.header("content-range");
                assert!(range.is_empty() || range.starts_with(&format!("{}-", came.len())), "{range}");
                came.extend(&asked.body);
                Answer::new(202, "").with("location", "/v2/y/blobs/uploads/1?state=b")
            }
            "GET" => {
                let end = came.len().saturating_sub(1);
                Answer::new(204, "")
                    .with("range", format!("0-{end}"))
                    .with("location", "/v2/y/blobs/uploads/1?state=c")
            }
            _ if asked.path.contains("manifests") => {
                Answer::new(201, "").with("docker-content-digest", Digest::of(&asked.body))
            }
            _ => {
                let digest = Digest::of(&came).to_string();
                let good = asked.path.ends_with(&format!("&digest={digest}"));
                Answer::new(if good { 201 } else { 400 }, "").with("docker-content-digest", digest)
            }
        }
    })
}

#[test]
fn a_cut_upload_goes_on_where_it_was_cut() {
    let (_, _, layer) = image();
    for cut in [usize::MAX, 1000, 1, 0] {
        let server = uploads(cut);
        let repository = repository(&settings(), &server, "y:1");
        let pushing = repository.pushing(vec![]).unwrap();
        let descriptor = Descriptor::of(OCI_LAYER, &layer);
        assert!(!pushing.has(&descriptor).unwrap());
        pushing.put(&descriptor, &mut &layer[..]).unwrap();
        let sent: usize = server.asked().iter().filter(|a| a.method == "PATCH").map(|a| a.body.len()).sum();
        let again = if cut < layer.len() { layer.len() - if cut == 1 { 0 } else { cut } } else { 0 };
        assert_eq!(sent, layer.len() + again, "cut at {cut}");
        let new = pushing.put_new(OCI_LAYER, &mut &layer[..]).unwrap();
        assert_eq!(new, descriptor);
        let chunked = server.asked().iter().filter(|a| a.header("transfer-encoding") == "chunked").count();
        assert_eq!(chunked, 1);
        pushing.finish(&Descriptor::of(OCI_MANIFEST, b"{}"), b"{}").unwrap();
        let last = server.asked().pop().unwrap();
        assert!(last.is("PUT", "/v2/y/manifests/1") && last.header("content-type") == OCI_MANIFEST);
    }
}

#[test]
fn what_is_pushed_is_what_was_promised_and_what_arrived() {
    let server = uploads(usize::MAX);
    let repository_ = repository(&settings(), &server, "y:1");
    let pushing = repository_.pushing(vec![]).unwrap();
    let promised = Descriptor { size: 3, ..Descriptor::of(OCI_LAYER, b"abcd") };
    assert!(
        report::line(&pushing.put(&promised, &mut &b"abc"[..]).unwrap_err())
            .contains("its content is that of")
    );
    assert!(!server.asked().iter().any(|a| a.method == "PUT"), "what is wrong is not ended");
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("our own disk"))
        }
    }
    let error = report::line(&pushing.put(&promised, &mut Broken).unwrap_err());
    assert!(error.contains("our own disk"), "{error}");
    let liar = Server::new(|asked, _| match asked.method.as_str() {
        "PUT" => Answer::new(201, "").with("docker-content-digest", format!("sha256:{}", "1".repeat(64))),
        _ => Answer::new(404, ""),
    });
    let repository_ = repository(&settings(), &liar, "y:1");
    let pushing = repository_.pushing(vec![]).unwrap();
    let error = report::line(&pushing.finish(&Descriptor::of(OCI_MANIFEST, b"{}"), b"{}").unwrap_err());
    assert!(error.contains("took the manifest for sha256:111"), "{error}");
}

#[test]
fn an_upload_elsewhere_gets_no_credentials() {
    let other = Server::new(|_, _| Answer::new(202, "").with("location", "/done"));
    let place = format!("http://{}/elsewhere", other.address);
    let server = Server::new(move |asked, _| {
        if asked.header("authorization").is_empty() {
            return Answer::new(401, "").with("www-authenticate", "Basic realm=x");
        }
        Answer::new(202, "").with("location", &place)
    });
    let repository = repository(&with_login(), &server, "y:1");
    let pushing = repository.pushing(vec![]).unwrap();
    let (_, _, layer) = image();
    assert!(pushing.put(&Descriptor::of(OCI_LAYER, &layer), &mut &layer[..]).is_err());
    assert!(!other.asked().is_empty());
    assert!(other.asked().iter().all(|a| a.header("authorization").is_empty()));
    assert!(server.asked().iter().any(|a| !a.header("authorization").is_empty()));
}

#[test]
fn a_blob_that_a_relative_has_is_mounted() {
    let server = Server::new(|asked, _| match asked.method.as_str() {
        "POST" if asked.path.contains("from=rel/one") => Answer::new(202, "").with("location", "/up"),
        "POST" if asked.path.contains("from=rel/two") => Answer::new(201, "").with("location", "/there"),
        _ => Answer::new(404, ""),
    });
    let repository = repository(&settings(), &server, "y:1");
    let pushing = repository.pushing(vec!["rel/one".to_owned(), "rel/two".to_owned()]).unwrap();
    assert!(pushing.has(&Descriptor::of(OCI_LAYER, b"x")).unwrap());
    let ends = server.asked().len();
    assert_eq!(ends, 3, "one HEAD, two attempts");
}

#[test]
fn lists_have_pages_and_an_end() {
    let server = Server::new(|asked, _| match asked.path.as_str() {
        "/v2/x/tags/list?n=1000" => {
            Answer::new(200, r#"{"tags":["1","2"]}"#).with("link", r#"</v2/x/tags/list?last=2>; rel="next""#)
        }
        "/v2/x/tags/list?last=2" => Answer::new(200, r#"{"tags":["3"]}"#),
        path if path.starts_with("/v2/loop") => {
            Answer::new(200, r#"{"tags":null}"#).with("link", format!(r#"<{path}>; rel="next""#))
        }
        _ => Answer::new(404, ""),
    });
    assert_eq!(repository(&settings(), &server, "x").tags().unwrap(), ["1", "2", "3"]);
    let error = report::line(&repository(&settings(), &server, "loop").tags().unwrap_err());
    assert!(error.contains("without an end"), "{error}");
}

#[test]
fn mirrors_are_asked_first_and_the_registry_after_them() {
    let mirror =
        Server::new(
            |asked, _| if asked.path.contains("manifests") { good(asked) } else { Answer::new(404, "") },
        );
    let server = Server::new(|asked, _| good(asked));
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join(&server.address);
    std::fs::create_dir_all(&dir).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        server.address, mirror.address
    );
    std::fs::write(dir.join("hosts.toml"), text).unwrap();
    let settings = Settings { hosts: vec![folder.path().to_owned()], ..with_login() };
    pull(&settings, &server).unwrap();
    assert!(mirror.asked().iter().any(|a| a.path.contains("manifests")));
    assert!(!server.asked().iter().any(|a| a.path.contains("manifests")));
    assert!(server.asked().iter().any(|a| a.path.contains("blobs")));
    repository(&settings, &server, "x:1").root().unwrap();
}
