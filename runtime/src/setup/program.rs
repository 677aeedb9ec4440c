//! Which file is the program, where does it run, and what is its HOME? Asked inside the container's root.

use std::ffi::{CStr, CString, OsStr};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use report::{Explain, Kind};

use crate::launch::channel::lower;

/// execvp(3): where to look when the environment has no PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// More of /etc/passwd is not looked at.
const PASSWD_LIMIT: u64 = 4 << 20;

/// Find `args[0]` in the PATH of `env`, as execvp(3). The wording is runc's: dockerd tells 126 from 127 by it.
pub fn find(name: &CStr, env: &[CString]) -> Result<CString> {
    let text = String::from_utf8_lossy(name.to_bytes()).into_owned();
    if name.to_bytes().contains(&b'/') {
        return match check(Path::new(OsStr::from_bytes(name.to_bytes()))) {
            Ok(()) => Ok(name.to_owned()),
            Err(e)
                if e.kind() == std::io::ErrorKind::PermissionDenied
                    || e.raw_os_error() == Some(libc_eisdir()) =>
            {
                Err(anyhow!("{}", lower(&e))).context(format!("exec: {text:?}")).kind(Kind::CannotExecute)
            }
            Err(e) => Err(anyhow!("{}", lower(&e)))
                .context(format!("stat {text}"))
                .context(format!("exec: {text:?}"))
                .kind(Kind::CannotExecute),
        };
    }
    let path =
        env.iter().find_map(|e| e.to_bytes().strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH.as_bytes());
    let mut denied = false;
    for dir in path.split(|b| *b == b':') {
        let dir = if dir.is_empty() { b"." } else { dir };
        let candidate = Path::new(OsStr::from_bytes(dir)).join(OsStr::from_bytes(name.to_bytes()));
        match check(&candidate) {
            Ok(()) => return CString::new(candidate.as_os_str().as_bytes()).context("program path"),
            Err(e) => denied |= e.kind() == std::io::ErrorKind::PermissionDenied,
        }
    }
    let what = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(anyhow!("{what}")).context(format!("exec: {text:?}")).kind(Kind::CannotExecute)
}

fn libc_eisdir() -> i32 {
    rustix::io::Errno::ISDIR.raw_os_error()
}

/// Whether the path names a file that somebody may execute; execve(2) itself has the last word.
fn check(path: &Path) -> std::io::Result<()> {
    let meta = std::fs::metadata(path)?;
    if meta.is_dir() {
        return Err(std::io::Error::from_raw_os_error(libc_eisdir()));
    }
    if meta.mode() & 0o111 == 0 {
        return Err(std::io::Error::from_raw_os_error(rustix::io::Errno::ACCESS.raw_os_error()));
    }
    Ok(())
}

/// Go to `cwd`. A directory outside the container's root (reached through a descriptor of ours in /proc) is refused.
pub fn enter_directory(cwd: &CStr) -> Result<()> {
    let shown = || format!("process.cwd: change to directory {}", cwd.to_string_lossy());
    rustix::process::chdir(cwd).with_context(shown)?;
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(()),
        _ => Err(anyhow!("it is outside of the container's root file system")).with_context(shown),
    }
}

/// The home directory of `uid` by the container's /etc/passwd; `/` if that is no file, or does not say.
pub fn home(uid: u32) -> Result<CString> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let read = || -> std::io::Result<Vec<u8>> {
        let file =
            std::fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open("/etc/passwd")?;
        let mut bytes = Vec::new();
        if file.metadata()?.is_file() {
            file.take(PASSWD_LIMIT).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(e) if is_not_there(&e) => Vec::new(),
        Err(e) => return Err(e).context("read /etc/passwd of the container"),
    };
    // What is not UTF-8 says nothing.
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let home = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let id = fields.nth(2)?.parse::<u32>().ok()?;
        let home = fields.nth(2)?;
        (id == uid && !home.is_empty()).then_some(home)
    });
    Ok(CString::new(home.unwrap_or("/")).unwrap_or_else(|_| c"/".to_owned()))
}

/// What an image may have in a file's place.
fn is_not_there(e: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(e);
    [Errno::NOENT, Errno::NOTDIR, Errno::ACCESS, Errno::LOOP, Errno::NXIO, Errno::NODEV, Errno::ISDIR]
        .map(Some)
        .contains(&errno)
}

/// `env` with HOME, if it has none.
pub fn with_home(env: &[CString], uid: u32) -> Result<Vec<CString>> {
    let mut env = env.to_vec();
    if !env.iter().any(|e| e.to_bytes().starts_with(b"HOME=")) {
        let mut entry = b"HOME=".to_vec();
        entry.extend_from_slice(home(uid)?.to_bytes());
        env.extend(CString::new(entry));
    }
    Ok(env)
}
