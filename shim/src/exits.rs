//! Who has ended, when and how? The shim is a subreaper: containers whose runtime has gone are its children, and so is whatever they
//! leave behind. One place waits for all of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::process::Command;
use std::rc::Rc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use sys::process::Exit;
use sys::signals::Signals;

use crate::executor::{Loop, Once};

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub exit: Exit,
    pub at: SystemTime,
}

impl Ended {
    pub fn now(exit: Exit) -> Ended {
        Ended { exit, at: SystemTime::now() }
    }

    /// The code, or 128 and the signal's number.
    pub fn status(self) -> u32 {
        self.exit.status().cast_unsigned()
    }
}

/// Our children, and what has become of them.
#[derive(Clone, Debug, Default)]
pub struct Children(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    watched: RefCell<BTreeMap<i32, Once<Ended>>>,
    /// Ends of processes that somebody may still ask for: a container's process may end before we know its number.
    unclaimed: RefCell<BTreeMap<i32, Ended>>,
    expecting: Cell<u32>,
    /// One that stays a zombie until its end is written down.
    kept: Cell<i32>,
}

/// While it is there, the end of a process that nobody watches yet is kept.
#[derive(Debug)]
pub struct Expecting(Children);

impl Drop for Expecting {
    fn drop(&mut self) {
        let left = self.0.0.expecting.get() - 1;
        self.0.0.expecting.set(left);
        if left == 0 {
            self.0.0.unclaimed.borrow_mut().clear();
        }
    }
}

impl Children {
    pub fn expect(&self) -> Expecting {
        self.0.expecting.set(self.0.expecting.get() + 1);
        Expecting(self.clone())
    }

    /// When and how the child ends. Its number stays its own until then.
    pub fn watch(&self, pid: i32) -> Once<Ended> {
        let unclaimed = self.0.unclaimed.borrow_mut().remove(&pid);
        let mut watched = self.0.watched.borrow_mut();
        if let Some(ended) = unclaimed {
            // Another process may have got the number since: then the end was that of a stranger.
            if !sys::process::is_child(pid) {
                let once = Once::default();
                once.set(ended);
                return once;
            }
        }
        watched.entry(pid).or_default().clone()
    }

    /// Wait for all that have ended. Called when SIGCHLD came.
    pub fn reap(&self) {
        loop {
            let kept = self.0.kept.get();
            if kept != 0 {
                match sys::process::peek() {
                    Ok(Some((pid, exit))) if pid == kept => {
                        if let Some(once) = self.0.watched.borrow().get(&pid) {
                            once.set(Ended::now(exit));
                        }
                        // The kernel shows this one first: others are asked for by name, and orphans later.
                        return self.reap_watched_but(kept);
                    }
                    Ok(_) => {}
                    Err(e) => log::warn!("look at children: {e}"),
                }
            }
            match sys::process::reap() {
                Ok(Some((pid, exit))) => {
                    let ended = Ended::now(exit);
                    match self.0.watched.borrow_mut().remove(&pid) {
                        Some(once) => once.set(ended),
                        None if self.0.expecting.get() > 0 => {
                            self.0.unclaimed.borrow_mut().insert(pid, ended);
                        }
                        None => {}
                    }
                }
                Ok(None) => return,
                Err(e) => {
                    log::warn!("wait for children: {e}");
                    return;
                }
            }
        }
    }

    fn reap_watched_but(&self, kept: i32) {
        let others: Vec<i32> = self.0.watched.borrow().keys().copied().filter(|pid| *pid != kept).collect();
        for pid in others {
            let ended = match sys::process::try_wait(pid) {
                Ok(None) => continue,
                Ok(Some(exit)) => Ended::now(exit),
                Err(e) => {
                    log::warn!("wait for process {pid}: {e}");
                    continue;
                }
            };
            if let Some(once) = self.0.watched.borrow_mut().remove(&pid) {
                once.set(ended);
            }
        }
    }

    /// Do not take this one's end away from the kernel until `let_go`: if we are killed before it is written down, whoever is its
    /// parent then can still ask for it. One at a time.
    pub fn keep(&self, pid: i32) {
        self.0.kept.set(pid);
    }

    pub fn let_go(&self) {
        self.0.kept.set(0);
        self.reap();
    }

    /// Start a command; its end is what `watch` gives. Its signals are as every program expects them.
    pub fn start(&self, command: &mut Command) -> Result<(i32, Once<Ended>)> {
        let child =
            command.spawn().with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
        let pid = child.id().cast_signed();
        // `child` goes without being waited for: `reap` does that.
        Ok((pid, self.watch(pid)))
    }
}

/// Let children be reaped and `signal` hear of every other signal, for as long as the loop runs.
pub fn attend(on: &Loop, children: &Children, signals: Signals, mut signal: impl FnMut(i32) + 'static) {
    let (within, children) = (on.clone(), children.clone());
    on.spawn(async move {
        loop {
            if let Err(e) = within.readable(signals.as_fd()).await {
                log::warn!("wait for signals: {e}");
                return;
            }
            while let Ok(Some(number)) = signals.next() {
                if number == signals.child() {
                    children.reap();
                } else {
                    signal(number);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Children are the process's: tests that wait for them take turns.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

    // Not through `attend`: in a test's process other threads take the signals.
    #[test]
    fn ends_are_not_lost() {
        let _turn = TURN.lock();
        let on = Loop::new().unwrap();
        let children = Children::default();
        let reaping = || {
            children.reap();
            on.run(on.sleep(std::time::Duration::from_millis(1))).unwrap();
        };
        let (_, ended) = children.start(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        while ended.get().is_none() {
            reaping();
        }
        assert_eq!(ended.get().map(|e| e.exit), Some(Exit::Code(7)));

        // It ends before anybody asks for it.
        let expecting = children.expect();
        let pid = Command::new("sh").args(["-c", "kill -9 $$"]).spawn().unwrap().id().cast_signed();
        while sys::process::is_child(pid) {
            reaping();
        }
        assert_eq!(children.watch(pid).get().map(|e| e.status()), Some(137));
        drop(expecting);
        assert!(children.0.unclaimed.borrow().is_empty());
    }

    /// What was a deadlock: the container had ended before the runtime's `start` had.
    #[test]
    fn one_that_is_kept_does_not_hold_up_others() {
        let _turn = TURN.lock();
        let children = Children::default();
        let until = |what: &Once<Ended>| {
            while what.get().is_none() {
                children.reap();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        };
        let (first, kept) = children.start(Command::new("sh").args(["-c", "exit 3"])).unwrap();
        children.keep(first);
        until(&kept);
        let (_, other) = children.start(Command::new("sh").args(["-c", "exit 4"])).unwrap();
        until(&other);
        assert_eq!((kept.get().map(Ended::status), other.get().map(Ended::status)), (Some(3), Some(4)));
        assert!(sys::process::is_child(first), "still to be asked for");
        children.let_go();
        assert!(!sys::process::is_child(first));
    }
}
