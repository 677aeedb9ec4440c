//! How does one thread wait for many things? Tasks are futures; they wait for descriptors, moments and each other, and epoll(7) is
//! where all of them sleep.
//!
//! Moments are monotonic (`CLOCK_MONOTONIC`): who sets the clock back a day moves none of them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The loop; clones are the same one.
#[derive(Clone)]
pub struct Loop(Rc<Inner>);

struct Inner {
    epoll: OwnedFd,
    tasks: RefCell<BTreeMap<u64, Task>>,
    ready: Ready,
    next: Cell<u64>,
    fds: RefCell<BTreeMap<i32, [Option<Waiter>; 2]>>,
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    /// Nothing has happened since memory was given back.
    small: Cell<bool>,
}

/// The numbers of the tasks that can go on.
type Ready = Arc<Mutex<VecDeque<u64>>>;

struct Waiter {
    waker: Waker,
    came: Rc<Cell<bool>>,
}

struct TaskWaker {
    task: u64,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.task);
    }
}

/// The future that `run` was given.
const MAIN: u64 = 0;

/// So long nothing must happen for memory to be given back.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
enum Direction {
    Read = 0,
    Write = 1,
}

impl Loop {
    pub fn new() -> io::Result<Loop> {
        Ok(Loop(Rc::new(Inner {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            tasks: RefCell::default(),
            ready: Ready::default(),
            next: Cell::new(MAIN + 1),
            fds: RefCell::default(),
            timers: RefCell::default(),
            small: Cell::default(),
        })))
    }

    fn number(&self) -> u64 {
        self.0.next.replace(self.0.next.get() + 1)
    }

    /// Let a task run beside the others.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let number = self.number();
        self.0.tasks.borrow_mut().insert(number, Box::pin(task));
        self.0.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(number);
    }

    fn waker(&self, task: u64) -> Waker {
        Arc::new(TaskWaker { task, ready: self.0.ready.clone() }).into()
    }

    /// Run until `main` is done. The other tasks stay where they are, for the next run.
    pub fn run<T>(&self, main: impl Future<Output = T>) -> io::Result<T> {
        let mut main = Box::pin(main);
        let waker = self.waker(MAIN);
        waker.wake_by_ref();
        loop {
            loop {
                let next = self.0.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                match next {
                    Some(MAIN) => {
                        if let Poll::Ready(done) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                            return Ok(done);
                        }
                    }
                    Some(number) => self.go_on(number),
                    None => break,
                }
            }
            self.sleep_until_something_comes()?;
        }
    }

    fn go_on(&self, number: u64) {
        // Taken out: the task may spawn others, or be woken while it runs.
        let Some(mut task) = self.0.tasks.borrow_mut().remove(&number) else { return };
        let waker = self.waker(number);
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut().insert(number, task);
        }
    }

    fn sleep_until_something_comes(&self) -> io::Result<()> {
        let first = self.0.timers.borrow().first_key_value().map(|((at, _), _)| *at);
        let mut left = first.map(|at| at.saturating_duration_since(Instant::now()));
        if !self.0.small.get() {
            left = Some(left.map_or(QUIET, |left| left.min(QUIET)));
        }
        let timeout = left.map(|left| rustix::event::Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 16];
        let (came, _) = match epoll::wait(&self.0.epoll, &mut events, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(()),
            other => other?,
        };
        if came.is_empty() && !self.0.small.get() && left == Some(QUIET) {
            // A loop that waits for hours keeps no program in memory: what is needed again is read again.
            sys::memory::drop_program();
            sys::memory::trim();
            self.0.small.set(true);
        } else {
            self.0.small.set(false);
        }
        for event in came {
            let fd = event.data.u64() as i32;
            let flags = event.flags;
            let wrong = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            let mut fds = self.0.fds.borrow_mut();
            let Some(waiters) = fds.get_mut(&fd) else { continue };
            let readable = wrong || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP);
            let writable = wrong || flags.contains(epoll::EventFlags::OUT);
            for (waiter, yes) in waiters.iter_mut().zip([readable, writable]) {
                if let Some(waiter) = waiter.take_if(|_| yes) {
                    waiter.came.set(true);
                    waiter.waker.wake();
                }
            }
            if waiters.iter().all(Option::is_none) {
                fds.remove(&fd);
            } else {
                let interest = interest(waiters);
                drop(fds);
                self.arm(fd, interest)?;
            }
        }
        let now = Instant::now();
        let mut timers = self.0.timers.borrow_mut();
        while let Some(first) = timers.first_entry().filter(|e| e.key().0 <= now) {
            first.remove().wake();
        }
        Ok(())
    }

    /// One event of the kinds that are waited for. A descriptor that is closed meanwhile is forgotten by the kernel itself.
    fn arm(&self, fd: i32, interest: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(fd as u64);
        let fd = sys::fd::borrow(fd);
        match epoll::modify(&self.0.epoll, fd, data, interest) {
            Err(Errno::NOENT) => epoll::add(&self.0.epoll, fd, data, interest)?,
            other => other?,
        }
        Ok(())
    }

    fn wait_for<'a>(&self, fd: BorrowedFd<'a>, direction: Direction) -> Waiting<'a> {
        Waiting { on: self.clone(), fd, direction, came: None }
    }

    /// Until there is something to read, or the other side is gone.
    pub fn readable<'a>(&self, fd: BorrowedFd<'a>) -> impl Future<Output = io::Result<()>> + use<'a> {
        self.wait_for(fd, Direction::Read)
    }

    /// Until there is room to write, or the other side is gone.
    pub fn writable<'a>(&self, fd: BorrowedFd<'a>) -> impl Future<Output = io::Result<()>> + use<'a> {
        self.wait_for(fd, Direction::Write)
    }

    /// Until a moment.
    pub fn until(&self, at: Instant) -> impl Future<Output = ()> + use<> {
        Sleep { on: self.clone(), at, number: None }
    }

    pub fn sleep(&self, time: Duration) -> impl Future<Output = ()> + use<> {
        self.until(Instant::now() + time)
    }

    /// What the future gives, if it does so in time.
    pub async fn within<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T> {
        match first(future, self.sleep(time)).await {
            First::Left(value) => Some(value),
            First::Right(()) => None,
        }
    }
}

fn interest(waiters: &[Option<Waiter>; 2]) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::ONESHOT;
    flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, waiters[Direction::Read as usize].is_some());
    flags.set(epoll::EventFlags::OUT, waiters[Direction::Write as usize].is_some());
    flags
}

struct Waiting<'a> {
    on: Loop,
    fd: BorrowedFd<'a>,
    direction: Direction,
    came: Option<Rc<Cell<bool>>>,
}

impl Future for Waiting<'_> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.came.as_ref().is_some_and(|c| c.get()) {
            return Poll::Ready(Ok(()));
        }
        let came = self.came.get_or_insert_default().clone();
        let fd = self.fd.as_raw_fd();
        let interest = {
            let mut fds = self.on.0.fds.borrow_mut();
            let waiters = fds.entry(fd).or_default();
            waiters[self.direction as usize] = Some(Waiter { waker: cx.waker().clone(), came });
            interest(waiters)
        };
        match self.on.arm(fd, interest) {
            Ok(()) => Poll::Pending,
            // A file of a disk can always be read and written.
            Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Poll::Ready(Ok(())),
            Err(e) => Poll::Ready(Err(e)),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.came.as_ref().is_none_or(|c| c.get()) {
            return;
        }
        let fd = self.fd.as_raw_fd();
        let mut fds = self.on.0.fds.borrow_mut();
        let Some(waiters) = fds.get_mut(&fd) else { return };
        waiters[self.direction as usize] = None;
        if waiters.iter().all(Option::is_none) {
            fds.remove(&fd);
            epoll::delete(&self.on.0.epoll, self.fd).unwrap_or_default();
        } else {
            let interest = interest(waiters);
            drop(fds);
            self.on.arm(fd, interest).unwrap_or_default();
        }
    }
}

struct Sleep {
    on: Loop,
    at: Instant,
    number: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.at <= Instant::now() {
            return Poll::Ready(());
        }
        let on = self.on.clone();
        let number = *self.number.get_or_insert_with(|| on.number());
        on.0.timers.borrow_mut().insert((self.at, number), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.on.0.timers.borrow_mut().remove(&(self.at, number));
        }
    }
}

/// Which of two came first.
#[derive(Debug, PartialEq, Eq)]
pub enum First<A, B> {
    Left(A),
    Right(B),
}

/// Wait for two; the other one is dropped.
pub async fn first<A, B>(left: impl Future<Output = A>, right: impl Future<Output = B>) -> First<A, B> {
    let (mut left, mut right) = (std::pin::pin!(left), std::pin::pin!(right));
    poll_fn(|cx| {
        if let Poll::Ready(value) = left.as_mut().poll(cx) {
            return Poll::Ready(First::Left(value));
        }
        right.as_mut().poll(cx).map(First::Right)
    })
    .await
}

/// Something that becomes known once, and that many may wait for. Clones are the same one.
#[derive(Debug)]
pub struct Once<T>(Rc<OnceInner<T>>);

#[derive(Debug)]
struct OnceInner<T> {
    value: RefCell<Option<T>>,
    waiting: RefCell<Vec<Waker>>,
}

impl<T> Clone for Once<T> {
    fn clone(&self) -> Self {
        Once(self.0.clone())
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Once(Rc::new(OnceInner { value: RefCell::new(None), waiting: RefCell::default() }))
    }
}

impl<T: Clone> Once<T> {
    /// Now it is known; what it is already stays.
    pub fn set(&self, value: T) {
        self.0.value.borrow_mut().get_or_insert(value);
        for waker in self.0.waiting.take() {
            waker.wake();
        }
    }

    pub fn get(&self) -> Option<T> {
        self.0.value.borrow().clone()
    }

    pub fn wait(&self) -> impl Future<Output = T> + use<T> {
        let this = self.clone();
        poll_fn(move |cx| match this.get() {
            Some(value) => Poll::Ready(value),
            None => {
                this.0.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        })
    }
}

/// A bell: who waits goes on when it is rung. Rung with nobody waiting, the next one does not wait.
#[derive(Clone, Debug, Default)]
pub struct Bell(Rc<(Cell<bool>, RefCell<Option<Waker>>)>);

impl Bell {
    pub fn ring(&self) {
        self.0.0.set(true);
        if let Some(waker) = self.0.1.take() {
            waker.wake();
        }
    }

    /// One at a time.
    pub fn wait(&self) -> impl Future<Output = ()> + use<> {
        let this = self.clone();
        poll_fn(move |cx| {
            if this.0.0.take() {
                return Poll::Ready(());
            }
            this.0.1.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptors_moments_and_each_other() {
        let on = Loop::new().unwrap();
        let (a, b) = rustix::pipe::pipe().unwrap();
        let said = Rc::new(RefCell::new(Vec::new()));
        let done = Once::default();
        on.spawn({
            let (on, said, done) = (on.clone(), said.clone(), done.clone());
            async move {
                on.readable(a.as_fd()).await.unwrap();
                said.borrow_mut().push("read");
                done.set(7);
            }
        });
        on.spawn({
            let (on, said) = (on.clone(), said.clone());
            async move {
                on.sleep(Duration::from_millis(5)).await;
                said.borrow_mut().push("slept");
                rustix::io::write(&b, b"x").unwrap();
            }
        });
        assert_eq!(on.run(done.wait()).unwrap(), 7);
        assert_eq!(*said.borrow(), ["slept", "read"]);
        assert!(on.0.timers.borrow().is_empty() && on.0.fds.borrow().is_empty());
    }

    #[test]
    fn who_comes_second_is_forgotten() {
        let on = Loop::new().unwrap();
        let (a, b) = rustix::pipe::pipe().unwrap();
        let came = on.run(on.within(Duration::from_millis(1), on.readable(a.as_fd()))).unwrap();
        assert!(came.is_none());
        assert!(on.0.fds.borrow().is_empty());
        // Both directions of one descriptor; and the end of the other side counts as readable.
        on.run(on.writable(b.as_fd())).unwrap().unwrap();
        drop(b);
        on.run(on.readable(a.as_fd())).unwrap().unwrap();
    }

    #[test]
    fn a_bell_is_not_missed() {
        let on = Loop::new().unwrap();
        let bell = Bell::default();
        bell.ring();
        bell.ring();
        on.run(bell.wait()).unwrap();
        let second = on.run(on.within(Duration::from_millis(1), bell.wait())).unwrap();
        assert!(second.is_none());
    }
}
