//! How is work shared among threads? With as many as there may be: that a process may have no more is no reason to fail, where one
//! does it as well.

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};

/// As many threads as there are processors for.
pub fn processors() -> NonZero<usize> {
    thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

/// A thread of `scope`; an error if there may be no more.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    run: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let spawned = thread::Builder::new().spawn_scoped(scope, run);
    spawned.map_err(|e| io::Error::new(e.kind(), format!("start a thread: {e}")))
}

/// Do it to all items, several at a time on up to `threads` threads, this one among them. After the first error no other is begun.
pub fn each<T: Sync, E: Send>(
    items: &[T],
    threads: usize,
    run: impl Fn(usize, &T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { return };
            if let Err(e) = run(i, item) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                next.store(items.len(), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(items.len()) {
            if spawn(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_done_once_and_the_first_error_ends_it() {
        for threads in [0, 1, 3, 100] {
            let done = Mutex::new(Vec::new());
            let items: Vec<usize> = (0..50).collect();
            each(&items, threads, |i, item| {
                assert_eq!(i, *item);
                done.lock().unwrap().push(i);
                Ok::<_, ()>(())
            })
            .unwrap();
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            assert_eq!(done, items);
        }
        let count = AtomicUsize::new(0);
        let result = each(&[(); 1000], 2, |i, ()| {
            count.fetch_add(1, Ordering::Relaxed);
            if i == 3 { Err(i) } else { Ok(()) }
        });
        assert_eq!(result, Err(3));
        each::<(), ()>(&[], 4, |_, _| Err(())).unwrap();
    }
}
