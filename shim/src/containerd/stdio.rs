//! Where do the streams of a task go? To fifos of containerd's, to a file, or to a logging program.
//!
//! A process without a terminal gets the fifos themselves: nothing is copied, so nothing waits for us, and output goes on when the shim
//! is killed. We hold the other end of each, so that a containerd that is restarted ends nothing: what is written meanwhile waits in
//! the fifo.
//!
//! ```text
//!  containerd ──▶ stdin fifo ──▶ process        we: write end, until CloseIO
//!  containerd ◀── stdout fifo ◀── process       we: read end, until Delete
//! ```

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use report::Kind;
use rustix::fs::OFlags;

use crate::copy;
use crate::task::{Host, Streams};

/// The streams as a request names them.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// What we keep open for a process.
#[derive(Debug, Default)]
pub struct Held {
    /// Until the process has ended, or CloseIO.
    pub stdin: Option<OwnedFd>,
    /// Until the process is deleted.
    outputs: Vec<OwnedFd>,
    /// The fifo that the terminal will be copied to.
    waiting: Option<OwnedFd>,
}

/// Who owns the streams besides root (`io_uid`, `io_gid`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// What an output is, by its URI.
enum Target<'a> {
    Nothing,
    Fifo(&'a Path),
    File(PathBuf),
    Binary(&'a str),
}

fn target(name: &str) -> Result<Target<'_>> {
    if name.is_empty() {
        return Ok(Target::Nothing);
    }
    let Some((scheme, rest)) = name.split_once("://") else { return Ok(Target::Fifo(Path::new(name))) };
    match scheme {
        "fifo" => Ok(Target::Fifo(Path::new(rest))),
        "file" => Ok(Target::File(unescape(rest.split('?').next().unwrap_or_default()).into())),
        "binary" => Ok(Target::Binary(rest)),
        _ => Err(report::error(
            Kind::Unsupported,
            format!("{name}: unknown kind of stream {scheme:?}; known are fifo, file and binary"),
        )),
    }
}

/// `%2F` and the like, as URIs have them.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let code = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, code) {
            (b'%', Some(code)) => {
                out.push(code);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Names {
    /// Open what a process without a terminal gets, and what we hold.
    pub async fn open(
        &self,
        host: &Host,
        id: &str,
        namespace: &str,
        owner: Owner,
    ) -> Result<(Streams, Held)> {
        let mut held = Held::default();
        if self.terminal {
            if let Target::Fifo(path) = target(&self.stdout).context("stdout")? {
                held.waiting = read_by_others(host, path).await;
            }
            return Ok((Streams::Terminal, held));
        }
        let stdin = match target(&self.stdin).context("stdin")? {
            Target::Nothing => null()?,
            Target::Fifo(path) => {
                // Reading and writing: this never waits for the other side.
                let both = open_fifo(path, OFlags::RDWR)?;
                let given = open_fifo(path, OFlags::RDONLY)?;
                held.stdin = Some(both);
                given
            }
            Target::File(path) => {
                File::open(&path).with_context(|| format!("open {}", path.display()))?.into()
            }
            Target::Binary(_) => bail!("stdin: {}: a logging program gives no input", self.stdin),
        };
        let (stdout, stderr) = match target(&self.stdout).context("stdout")? {
            Target::Binary(uri) => logger(host, uri, id, namespace, &mut held).await?,
            _ => {
                let stdout = output(host, &self.stdout, &mut held, owner).await?;
                (stdout, output(host, &self.stderr, &mut held, owner).await?)
            }
        };
        if (owner.uid, owner.gid) != (0, 0) {
            chown(&stdin, owner)?;
        }
        Ok((Streams::Plain { stdin, stdout, stderr }, held))
    }

    /// Copy between a process's terminal and the fifos. `Held` keeps the readers' side; the end of copying is what it gives.
    pub fn attach(&self, host: &Host, terminal: OwnedFd, held: &mut Held) -> Result<copy::Terminal> {
        let input = match target(&self.stdin).context("stdin")? {
            Target::Fifo(path) => {
                held.stdin = Some(open_fifo(path, OFlags::RDWR)?);
                Some(open_fifo(path, OFlags::RDONLY | OFlags::NONBLOCK)?)
            }
            _ => None,
        };
        let out = match target(&self.stdout).context("stdout")? {
            Target::Fifo(path) => {
                held.outputs.push(open_fifo(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
                match held.waiting.take() {
                    Some(out) => out,
                    None => open_fifo(path, OFlags::WRONLY | OFlags::NONBLOCK)?,
                }
            }
            _ => file(&self.stdout)?,
        };
        Ok(copy::Terminal::new(&host.on, terminal, input, out))
    }
}

fn null() -> Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    Ok(file.into())
}

/// A fifo's writing side, once somebody reads: a client that has not come yet would, after a very short life of the container, not
/// come any more, and miss what it has said. `None`: nobody comes within two seconds.
async fn read_by_others(host: &Host, path: &Path) -> Option<OwnedFd> {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        match rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
            Ok(fd) => return Some(fd),
            Err(rustix::io::Errno::NXIO) if Instant::now() < until => {
                host.on.sleep(Duration::from_millis(1)).await;
            }
            // What is wrong with it is told by whoever opens it next.
            Err(_) => return None,
        }
    }
}

async fn output(host: &Host, name: &str, held: &mut Held, owner: Owner) -> Result<OwnedFd> {
    let out = match target(name)? {
        Target::Nothing => return null(),
        Target::Fifo(path) => {
            let waiting = read_by_others(host, path).await;
            // The reader first: then the writer need not wait for one.
            held.outputs.push(open_fifo(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
            let out = open_fifo(path, OFlags::WRONLY)?;
            drop(waiting);
            out
        }
        _ => file(name)?,
    };
    if (owner.uid, owner.gid) != (0, 0) {
        chown(&out, owner)?;
    }
    Ok(out)
}

/// Where it is no fifo.
fn file(name: &str) -> Result<OwnedFd> {
    match target(name)? {
        Target::File(path) => {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
            }
            let file = OpenOptions::new().append(true).create(true).mode(0o644).open(&path);
            Ok(file.with_context(|| format!("open {}", path.display()))?.into())
        }
        Target::Binary(_) => bail!("{name}: stdout names the logging program for both"),
        Target::Nothing | Target::Fifo(_) => null(),
    }
}

fn chown(file: &OwnedFd, owner: Owner) -> Result<()> {
    let uid = rustix::process::Uid::from_raw(owner.uid);
    let gid = rustix::process::Gid::from_raw(owner.gid);
    rustix::fs::fchown(file, Some(uid), Some(gid)).context("give a stream to its owner")
}

fn open_fifo(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let opening = || format!("open {}", path.display());
    let kind = std::fs::metadata(path).with_context(opening)?.file_type();
    if !kind.is_fifo() {
        bail!("{}: it is not a fifo", path.display());
    }
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).with_context(opening)
}

/// Start a logging program (containerd, "binary" logging): output at its descriptors 3 and 4; it closes 5 when it is ready. One that
/// ends while it is needed is started again; what was not read yet stays in the pipes.
async fn logger(
    host: &Host,
    uri: &str,
    id: &str,
    namespace: &str,
    held: &mut Held,
) -> Result<(OwnedFd, OwnedFd)> {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let path = PathBuf::from(unescape(path));
    let args: Vec<String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .flat_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            [unescape(key), unescape(value)].into_iter().filter(|word| !word.is_empty())
        })
        .collect();
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe");
    let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
    let copy = |fd: &OwnedFd| fd.try_clone().context("copy a descriptor");
    let (id, namespace) = (id.to_owned(), namespace.to_owned());
    let start = {
        let (out, err) = (copy(&out)?, copy(&err)?);
        let host = host.clone();
        move || -> Result<_> {
            let (wait, ready) = pipe()?;
            let mut command = Command::new(&path);
            command.args(&args).env("CONTAINER_ID", &id).env("CONTAINER_NAMESPACE", &namespace);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            sys::process::pass(&mut command, vec![(copy(&out)?, 3), (copy(&err)?, 4), (ready, 5)]);
            let (_, ended) = host.children.start(&mut command).context("start the logging program")?;
            Ok((wait, ended))
        }
    };
    let (wait, mut ended) = start()?;
    host.on
        .within(Duration::from_secs(10), host.on.readable(wait.as_fd()))
        .await
        .context("the logging program does not close descriptor 5, by which it says that it is ready")?
        .context("wait for the logging program")?;
    let on = host.on.clone();
    let life = copy(&out)?;
    host.on.spawn(async move {
        let mut pause = Duration::from_millis(100);
        loop {
            ended.wait().await;
            // Nobody can write any more, and all is read: it has done its work.
            if copy::is_at_end(&life) {
                return;
            }
            log::warn!("the logging program ended; it is started again in {pause:?}");
            on.sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(60));
            match start() {
                Ok((_, again)) => ended = again,
                Err(e) => {
                    log::warn!("{e:#}");
                    return;
                }
            }
        }
    });
    held.outputs.extend([out, err]);
    Ok((stdout, stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        let kind = |name| match target(name) {
            Ok(Target::Nothing) => "nothing".to_owned(),
            Ok(Target::Fifo(path)) => format!("fifo {}", path.display()),
            Ok(Target::File(path)) => format!("file {}", path.display()),
            Ok(Target::Binary(uri)) => format!("binary {uri}"),
            Err(e) => report::line(&e),
        };
        assert_eq!(kind(""), "nothing");
        assert_eq!(kind("/run/x"), "fifo /run/x");
        assert_eq!(kind("fifo:///run/x"), "fifo /run/x");
        assert_eq!(kind("file:///var/a%20b.log"), "file /var/a b.log");
        assert_eq!(kind("binary:///bin/l?a=b"), "binary /bin/l?a=b");
        assert_eq!(
            kind("npipe://x"),
            "npipe://x: unknown kind of stream \"npipe\"; known are fifo, file and binary"
        );
    }
}
