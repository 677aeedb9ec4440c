//! config.md#process terminal and consoleSize, and the console socket through which engines get the terminal.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::bundle::Bundle;
use super::case::{Case, contract, spec, strict};
use super::harness::{Container, Test, readable, same};

pub const CASES: &[Case] = &[
    spec(
        "terminal/socket-gets-master",
        "config.md#process terminal",
        "with terminal, the console socket receives the pseudoterminal's master",
        |t| {
            let (c, mut master) = with_console(t, t.bundle()?.args(&["tty"]))?;
            c.start()?;
            c.wait()?;
            let text = drain(&mut master)?;
            ensure!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "tty says {text:?}");
            Ok(())
        },
    ),
    spec("terminal/standard-streams", "config.md#process terminal", "0, 1 and 2 are the terminal", |t| {
        let (c, mut master) =
            with_console(t, t.sh("test -t 0 && test -t 1 && test -t 2 && echo all three")?)?;
        c.start()?;
        c.wait()?;
        ensure!(drain(&mut master)?.contains("all three"), "a standard stream is not a terminal");
        Ok(())
    }),
    spec(
        "terminal/console-size",
        "config.md#process consoleSize",
        "the terminal has the size of consoleSize",
        |t| {
            let b = t
                .bundle()?
                .args(&["stty", "size"])
                .set("/process/consoleSize", json!({"height": 33, "width": 111}));
            let (c, mut master) = with_console(t, b)?;
            c.start()?;
            c.wait()?;
            same("stty size", drain(&mut master)?.trim(), "33 111")
        },
    ),
    spec(
        "terminal/controlling",
        "config.md#process terminal",
        "the terminal is the program's controlling terminal",
        |t| {
            let (c, mut master) = with_console(t, t.sh("echo hello >/dev/tty")?)?;
            c.start()?;
            c.wait()?;
            ensure!(drain(&mut master)?.contains("hello"), "/dev/tty did not reach the terminal");
            Ok(())
        },
    ),
    spec(
        "terminal/dev-console",
        "config-linux.md#default-devices",
        "with terminal, /dev/console is the pseudoterminal",
        |t| {
            let (c, mut master) = with_console(t, t.sh("echo hello >/dev/console")?)?;
            c.start()?;
            c.wait()?;
            ensure!(drain(&mut master)?.contains("hello"), "/dev/console did not reach the terminal");
            Ok(())
        },
    ),
    spec(
        "terminal/in-containers-devpts",
        "config.md#process terminal",
        "the terminal belongs to the container's devpts",
        |t| {
            let (c, mut master) = with_console(t, t.sh("ls /dev/pts")?)?;
            c.start()?;
            c.wait()?;
            ensure!(drain(&mut master)?.split_whitespace().any(|w| w == "0"), "no /dev/pts/0 inside");
            Ok(())
        },
    ),
    spec("terminal/owner", "config.md#process terminal", "another user may open the terminal", |t| {
        let b =
            t.sh("echo hello >$(tty) && echo works")?.set("/process/user", json!({"uid": 1000, "gid": 1000}));
        let (c, mut master) = with_console(t, b)?;
        c.start()?;
        c.wait()?;
        ensure!(drain(&mut master)?.contains("works"), "the user may not open the terminal");
        Ok(())
    }),
    spec(
        "terminal/none",
        "config.md#process terminal",
        "without terminal, the streams are the caller's and /dev/console is not made",
        |t| {
            let text = t.sh("test -t 1 || echo no tty; ls /dev/console 2>/dev/null; true")?.output()?;
            same("output", text.as_str(), "no tty")
        },
    ),
    spec(
        "terminal/size-ignored-without",
        "config.md#process consoleSize",
        "consoleSize without terminal is ignored",
        |t| {
            let b = t.bundle()?.set("/process/consoleSize", json!({"height": 33, "width": 111}));
            b.run()?.ok().map(drop)
        },
    ),
    contract(
        "terminal/needs-socket",
        "CLI: create --console-socket",
        "create with terminal and no console socket is an error",
        |t| {
            let b = t.bundle()?.set("/process/terminal", json!(true));
            b.write()?;
            t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?
                .refused("a terminal without socket")
                .map(drop)
        },
    ),
    strict(
        "terminal/socket-without-terminal",
        "CLI: create --console-socket",
        "a console socket without terminal is an error, not silence",
        |t| {
            let b = t.bundle()?;
            b.write()?;
            let (_listener, path) = listener(t)?;
            t.rt(&["create", "--bundle", &b.dir_text(), "--console-socket", &path, &b.id])?
                .refused("a socket without terminal")
                .map(drop)
        },
    ),
    contract("terminal/exec", "CLI: exec --tty --console-socket", "exec --tty sends its own terminal", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).start()?;
        let (listener, path) = listener(t)?;
        let flags = ["--tty", "--detach", "--console-socket", &path];
        c.exec(&flags, &["sh", "-c", "test -t 0 && test -t 1 && echo tty; stty size"])?.ok()?;
        let mut master = receive(&listener)?;
        ensure!(drain(&mut master)?.contains("tty"), "not a terminal");
        Ok(())
    }),
    contract(
        "terminal/exec-process-file",
        "CLI: exec --process",
        "terminal and consoleSize of a process file hold",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            let (listener, path) = listener(t)?;
            let file = t.dir.join("process.json");
            let process = json!({
                "terminal": true, "consoleSize": {"height": 21, "width": 77}, "user": {"uid": 0, "gid": 0},
                "args": ["stty", "size"], "env": ["PATH=/bin"], "cwd": "/"
            });
            fs::write(&file, process.to_string())?;
            let file = file.to_string_lossy().into_owned();
            t.rt(&["exec", "--process", &file, "--console-socket", &path, "--detach", &c.id])?.ok()?;
            let mut master = receive(&listener)?;
            same("stty size", drain(&mut master)?.trim(), "21 77")
        },
    ),
];

/// `create` with a terminal and a console socket; answer the container and the master it sent.
fn with_console<'t>(t: &'t Test<'t>, bundle: Bundle<'t>) -> Result<(Container<'t>, File)> {
    let (listener, path) = listener(t)?;
    let container = bundle.set("/process/terminal", json!(true)).create_with(&["--console-socket", &path])?;
    let master = receive(&listener)?;
    Ok((container, master))
}

pub fn listener(t: &Test) -> Result<(UnixListener, String)> {
    let path: PathBuf = t.dir.join(format!("s{}", t.ticket()));
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    Ok((listener, path.to_string_lossy().into_owned()))
}

fn receive(listener: &UnixListener) -> Result<File> {
    let (_, fds) = receive_with_descriptors(listener, || Ok(()))?;
    let mut fds = fds.into_iter();
    let first = fds.next().context("the message carried no descriptor")?;
    ensure!(fds.next().is_none(), "the message carried more than one descriptor");
    Ok(File::from(first))
}

/// Everything one connection carries: bytes up to its end (or the first part, when it stays open) and descriptors.
/// If nothing comes at first, `nudge` is what makes the sender send.
pub fn receive_with_descriptors(
    listener: &UnixListener,
    nudge: impl FnOnce() -> Result<()>,
) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut nudge = Some(nudge);
    if !readable(listener, Duration::from_millis(300))?
        && let Some(nudge) = nudge.take()
    {
        nudge()?;
    }
    ensure!(readable(listener, Duration::from_secs(5))?, "nobody connected to the socket");
    let (stream, _): (UnixStream, _) = listener.accept()?;
    if !readable(&stream, Duration::from_millis(300))?
        && let Some(nudge) = nudge.take()
    {
        nudge()?;
    }
    let (mut bytes, mut fds) = (Vec::new(), Vec::new());
    loop {
        if !readable(&stream, Duration::from_secs(2))? {
            break;
        }
        let mut buffer = [0_u8; 8192];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).context("recvmsg")?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if got.bytes == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..got.bytes]);
    }
    Ok((bytes, fds))
}

/// What the terminal shows until nobody has it open any more.
fn drain(master: &mut File) -> Result<String> {
    let mut text = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        if !readable(master, Duration::from_secs(5))? {
            bail!("the terminal stays open and silent after {:?}", String::from_utf8_lossy(&text));
        }
        match master.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(&buffer[..n]),
            // EIO: the last holder of the other side has closed it.
            Err(error) if error.raw_os_error() == Some(5) => break,
            Err(error) => return Err(error).context("read the terminal"),
        }
    }
    Ok(String::from_utf8_lossy(&text).replace('\r', ""))
}
