//! Debian's docker-registry on loopback, with TLS and without, and skopeo beside us.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::manifest::Document;
use image::store::Wait;

use super::*;

/// A running docker-registry.
struct Real {
    child: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// None: it is not installed.
fn real(more: impl Fn(&Path) -> String) -> Option<Real> {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let config = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n{}",
        dir.path().join("data").display(),
        more(dir.path())
    );
    std::fs::write(dir.path().join("config.yml"), config).unwrap();
    let child = serve(&dir.path().join("config.yml"));
    match child {
        Some(child) => Some(Real { child, address, dir }),
        None => {
            eprintln!("skipped: no docker-registry");
            None
        }
    }
}

/// Start one, and wait until it says that it listens.
fn serve(config: &Path) -> Option<Child> {
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry has ended");
    }
    // It must not wait for somebody who reads the rest.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    Some(child)
}

/// A store with the image under `name`; the layer is `salt` and random-looking bytes.
fn store_with(dir: &Path, name: &str) -> Store {
    let server = Server::new(|asked, _| good(asked));
    let store = Store::open(dir).unwrap();
    let source = repository(&settings(), &server, "x:1");
    let target = store.receiving(vec![Some(name.parse().unwrap())], Unpack::Later).unwrap();
    copy(&source, &target, &options()).unwrap();
    drop(target);
    store
}

fn push(settings: &Settings, store: &Store, name: &str, to: &str, relatives: &[&str]) -> anyhow::Result<()> {
    let image = store.image(&name.parse().unwrap())?;
    let repository = settings.repository(&to.parse().unwrap())?;
    let pushing = repository.pushing(relatives.iter().map(|r| (*r).to_owned()).collect())?;
    copy(&store.reading(&image)?, &pushing, &options()).map(drop)
}

fn pull_from(settings: &Settings, from: &str) -> anyhow::Result<Descriptor> {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path())?;
    let target = store.receiving(vec![None], Unpack::Later)?;
    let root = copy(&settings.repository(&from.parse()?)?, &target, &options())?;
    drop(target);
    assert_eq!(store.sweep(Wait::Yes).unwrap().unwrap().blobs, []);
    Ok(root)
}

#[test]
fn images_go_to_a_real_registry_and_come_back() {
    let Some(real) = real(|_| String::new()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), "a:1");
    let root = store.image(&"a:1".parse().unwrap()).unwrap().target;
    let to = format!("{}/team/a:1", real.address);
    push(&settings(), &store, "a:1", &to, &[]).unwrap();
    assert_eq!(pull_from(&settings(), &to).unwrap().digest, root.digest);
    let by_digest = format!("{}/team/a@{}", real.address, root.digest);
    assert_eq!(pull_from(&settings(), &by_digest).unwrap().digest, root.digest);
    // Again, and elsewhere, from what is there already.
    push(&settings(), &store, "a:1", &format!("{}/team/a:2", real.address), &[]).unwrap();
    push(&settings(), &store, "a:1", &format!("{}/other/b:1", real.address), &["team/a"]).unwrap();
    let uploads =
        std::fs::read_dir(real.dir.path().join("data/docker/registry/v2/repositories/other/b/_uploads"));
    assert_eq!(uploads.map_or(0, Iterator::count), 0, "mounted, not uploaded");
    let repository = settings().repository(&to.parse().unwrap()).unwrap();
    let mut tags = repository.tags().unwrap();
    tags.sort();
    assert_eq!(tags, ["1", "2"]);
    assert_eq!(repository.current().unwrap(), Some(root.digest.clone()));
    assert_eq!(repository.referrers(&root.digest).unwrap(), []);
    let found = settings().search(&real.address, "team", 10).unwrap();
    assert_eq!(found.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["team/a"]);
    repository.delete().unwrap();
    let error = pull_from(&settings(), &to).unwrap_err();
    assert_eq!(report::kind(&error), Some(report::Kind::NotFound), "{}", report::line(&error));
}

#[test]
fn skopeo_takes_what_we_push_and_we_take_what_it_pushes() {
    let Some(real) = real(|_| String::new()) else { return };
    let program =
        ["/var/cache/berth-peers/bin/skopeo", "/usr/bin/skopeo"].into_iter().find(|p| Path::new(p).exists());
    let Some(program) = program else {
        eprintln!("skipped: no skopeo");
        return;
    };
    let skopeo = |args: &[&str]| {
        let out = Command::new(program).arg("--insecure-policy").args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), "a:1");
    let ours = format!("{}/ours:1", real.address);
    push(&settings(), &store, "a:1", &ours, &[]).unwrap();
    let inspected: serde_json::Value =
        serde_json::from_slice(&skopeo(&["inspect", "--tls-verify=false", &format!("docker://{ours}")]))
            .unwrap();
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 1);
    let theirs = format!("{}/theirs:1", real.address);
    for more in
        [&[][..], &["--format", "v2s2"], &["--dest-compress-format", "zstd", "--dest-force-compress-format"]]
    {
        let (from, to) = (format!("docker://{ours}"), format!("docker://{theirs}"));
        let args =
            [&["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"], more, &[&from, &to]]
                .concat();
        skopeo(&args);
        pull_from(&settings(), &theirs).unwrap();
    }
}

/// Stands between us and the registry, and ends the first connections after so many bytes.
fn cutting_proxy(to: String, cuts: usize, after: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let left = Arc::new(AtomicUsize::new(cuts));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else { continue };
            let server = TcpStream::connect(&to).unwrap();
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server.try_clone().unwrap(), client.try_clone().unwrap()),
            ] {
                let left = left.clone();
                std::thread::spawn(move || {
                    let (mut buffer, mut passed) = ([0; 4096], 0);
                    loop {
                        let n = from.read(&mut buffer).unwrap_or(0);
                        passed += n;
                        let cut = passed > after
                            && left
                                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |l| l.checked_sub(1))
                                .is_ok();
                        if n == 0 || cut || to.write_all(&buffer[..n]).is_err() {
                            from.shutdown(std::net::Shutdown::Both).unwrap_or_default();
                            to.shutdown(std::net::Shutdown::Both).unwrap_or_default();
                            return;
                        }
                    }
                });
            }
        }
    });
    address
}

#[test]
fn cut_connections_to_a_real_registry_are_gone_on_with() {
    let Some(real) = real(|_| "  relativeurls: true\n".to_owned()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), "a:1");
    let root = store.image(&"a:1".parse().unwrap()).unwrap().target;
    let proxy = cutting_proxy(real.address.clone(), 3, 100_000);
    push(&settings(), &store, "a:1", &format!("{proxy}/a:1"), &[]).unwrap();
    let proxy = cutting_proxy(real.address.clone(), 3, 100_000);
    assert_eq!(pull_from(&settings(), &format!("{proxy}/a:1")).unwrap().digest, root.digest);
}

/// A registry that is killed, and comes back with what it had.
#[test]
fn a_registry_that_is_killed_in_the_middle_gets_the_rest() {
    let Some(mut real) = real(|_| String::new()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), "a:1");
    let image = store.image(&"a:1".parse().unwrap()).unwrap();
    let Document::Manifest(manifest) = store.document(&image.target).unwrap() else { panic!() };
    let layer = manifest.layers[0].clone();
    let repository = settings().repository(&format!("{}/a:1", real.address).parse().unwrap()).unwrap();
    let pushing = repository.pushing(vec![]).unwrap();
    // The registry ends when half of it has been read.
    struct Half<'a> {
        from: std::fs::File,
        left: usize,
        at_half: Option<Box<dyn FnOnce() + Send + 'a>>,
    }
    impl Read for Half<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.left == 0
                && let Some(at_half) = self.at_half.take()
            {
                at_half();
            }
            let most = buffer.len().min(if self.left == 0 { 4096 } else { self.left });
            let n = self.from.read(&mut buffer[..most])?;
            self.left -= n.min(self.left);
            Ok(n)
        }
    }
    let config = real.dir.path().join("config.yml");
    let child = &mut real.child;
    let restart = move || {
        child.kill().unwrap();
        child.wait().unwrap();
        *child = serve(&config).unwrap();
    };
    let mut content = Half {
        from: store.blob(&layer.digest).unwrap(),
        left: layer.size as usize / 2,
        at_half: Some(Box::new(restart)),
    };
    // It takes a while until it is back: this client really waits.
    let waiting = Settings { pause: std::thread::sleep, ..settings() };
    let patient = waiting.repository(repository.reference()).unwrap();
    let pushing_patiently = patient.pushing(vec![]).unwrap();
    assert!(!pushing.has(&layer).unwrap());
    pushing_patiently.put(&layer, &mut content).unwrap();
    drop(content);
    assert!(pushing_patiently.has(&layer).unwrap());
}

#[test]
fn a_private_authority_and_a_password() {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = parameters.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(parameters, authority_key);
    let signed = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let serve = |name: &str| {
        let (certificate, key) = signed(name);
        real(|dir| {
            std::fs::write(dir.join("c.pem"), &certificate).unwrap();
            std::fs::write(dir.join("k.pem"), &key).unwrap();
            // ann:secret, as htpasswd -B writes it.
            std::fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
            let d = dir.display();
            format!(
                "  tls:\n    certificate: {d}/c.pem\n    key: {d}/k.pem\nauth:\n  htpasswd:\n    realm: r\n    path: {d}/htpasswd\n"
            )
        })
    };
    let Some(real) = serve("127.0.0.1") else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), "a:1");
    let to = format!("{}/a:1", real.address);
    let hosts = tempfile::tempdir().unwrap();
    let trusting = |settings: Settings, address: &str| {
        let folder = hosts.path().join(address);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("ca.crt"), authority.pem()).unwrap();
        Settings { hosts: vec![hosts.path().to_owned()], ..settings }
    };
    let error = report::line(&push(&with_login(), &store, "a:1", &to, &[]).unwrap_err());
    assert!(error.contains("certificate"), "nobody vouches for it: {error}");
    let error =
        report::line(&push(&trusting(settings(), &real.address), &store, "a:1", &to, &[]).unwrap_err());
    assert!(error.contains("authentication"), "{error}");
    let good = trusting(with_login(), &real.address);
    push(&good, &store, "a:1", &to, &[]).unwrap();
    pull_from(&good, &to).unwrap();
    good.check_login(&real.address).unwrap();
    let wrong = Credentials::Password { user: "ann".to_owned(), password: "wrong".to_owned() };
    let wrong = Settings { login: Some(wrong), ..good.clone() };
    assert!(report::line(&wrong.check_login(&real.address).unwrap_err()).contains("authentication failed"));
    // From a file, as docker login leaves it.
    let file = hosts.path().join("config.json");
    image::registry::credentials::store(&file, &real.address, "ann", "secret").unwrap();
    let from_file = Settings { login: None, credentials: vec![file], ..good };
    pull_from(&from_file, &to).unwrap();
    let insecure = Settings { insecure: true, ..with_login() };
    pull_from(&insecure, &to).unwrap();
    let Some(misnamed) = serve("elsewhere.example") else { return };
    let to = format!("{}/a:1", misnamed.address);
    let error =
        report::line(&push(&trusting(with_login(), &misnamed.address), &store, "a:1", &to, &[]).unwrap_err());
    assert!(error.contains("certificate"), "another's name: {error}");
}

const HTPASSWD: &str = "ann:$2y$05$uXERa5kRL2U7AQWdHztpw.36Ym7jZvElYJZtqX/TQVfwBCe20Asn6\n";
