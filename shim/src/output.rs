//! How does what a container writes get to its log and to whoever is attached? By one reader for each stream, which waits for neither of
//! them (unless the log was asked to hold up the container).

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use crate::executor::Once;
use crate::standalone::{Log, Stream};
use crate::task::Host;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 16;
/// How often a log that takes nothing is tried while nothing else comes.
const AGAIN: Duration = Duration::from_millis(250);

/// Somebody who is attached. It takes what comes without waiting.
pub trait Listener {
    fn output(&self, stream: Stream, bytes: &[u8]);
    /// It reads no more: it is forgotten.
    fn is_gone(&self) -> bool;
}

/// Where output goes.
pub struct Output<L> {
    host: Host,
    pub log: RefCell<Log>,
    pub listeners: RefCell<Vec<Rc<L>>>,
    compressing: Cell<bool>,
    flushing: Cell<bool>,
}

impl<L: Listener + 'static> Output<L> {
    pub fn new(host: &Host, log: Log) -> Rc<Output<L>> {
        Rc::new(Output {
            host: host.clone(),
            log: RefCell::new(log),
            listeners: RefCell::default(),
            compressing: Cell::default(),
            flushing: Cell::default(),
        })
    }

    /// Read a stream until its end, which is what this gives.
    pub fn attend(self: &Rc<Self>, fd: Rc<OwnedFd>, stream: Stream) -> Once<()> {
        let done = Once::default();
        let (this, ended) = (self.clone(), done.clone());
        self.host.on.spawn(async move {
            this.pump(&fd, stream).await;
            ended.set(());
        });
        done
    }

    async fn pump(self: &Rc<Self>, fd: &OwnedFd, stream: Stream) {
        while self.host.on.readable(fd.as_fd()).await.is_ok() {
            match self.read_some(fd, stream) {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) => {
                    log::warn!("read {}: {e}", stream.name());
                    break;
                }
            }
            while self.log.borrow().must_wait() {
                self.host.on.sleep(AGAIN).await;
                self.log.borrow_mut().flush();
            }
            self.keep_log();
        }
        self.log.borrow_mut().end(stream);
    }

    /// What is there now; `false`: the end.
    fn read_some(&self, fd: &OwnedFd, stream: Stream) -> rustix::io::Result<bool> {
        let mut buffer = Vec::with_capacity(CHUNK);
        match rustix::io::read(fd, rustix::buffer::spare_capacity(&mut buffer)) {
            // A terminal that nobody has open (any more) gives EIO.
            Ok(0) | Err(Errno::IO) => Ok(false),
            Ok(_) => {
                self.log.borrow_mut().add(stream, &buffer);
                let mut listeners = self.listeners.borrow_mut();
                listeners.retain(|listener| !listener.is_gone());
                for listener in listeners.iter() {
                    listener.output(stream, &buffer);
                }
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Turn the log over, and see to it that what waits is written some day.
    fn keep_log(self: &Rc<Self>) {
        if self.log.borrow().is_full() && !self.compressing.get() {
            let turned = self.log.borrow_mut().rotate();
            match turned {
                Ok(None) => {}
                Ok(Some(path)) => self.compress(path),
                Err(e) => log::warn!("{e:#}"),
            }
        }
        if self.log.borrow().is_stuck() && !self.flushing.replace(true) {
            let this = self.clone();
            self.host.on.spawn(async move {
                while this.log.borrow().is_stuck() {
                    this.host.on.sleep(AGAIN).await;
                    this.log.borrow_mut().flush();
                }
                this.flushing.set(false);
            });
        }
    }

    /// In a process of its own, which takes as long as it takes.
    fn compress(self: &Rc<Self>, path: PathBuf) {
        let Ok(own) = std::env::current_exe() else { return };
        let mut command = Command::new(own);
        command.arg0("berth-shim").arg("compress").arg(path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match self.host.children.start(&mut command) {
            Ok((_, ended)) => {
                self.compressing.set(true);
                let this = self.clone();
                self.host.on.spawn(async move {
                    ended.wait().await;
                    this.compressing.set(false);
                });
            }
            Err(e) => log::warn!("{e:#}"),
        }
    }
}
