//! When does the kernel kill for lack of memory?

use std::os::fd::AsFd;
use std::time::Duration;

use runtime::cgroup::Record;
use runtime::cgroup::oom::Watch;

use crate::executor::{Once, first};
use crate::task::Host;

/// Tell each time that it does so in a cgroup, until the first process has `ended`. That is what comes back: the same end, after all
/// was told that came before it. A container without a memory controller has no such times.
pub fn tell<T: Clone + 'static>(
    host: &Host,
    record: &Record,
    ended: Once<T>,
    told: impl Fn() + 'static,
) -> Once<T> {
    let watch = match Watch::new(record) {
        Ok(watch) => watch,
        Err(e) => {
            log::debug!("no word of lack of memory: {e:#}");
            return ended;
        }
    };
    let after = Once::default();
    let done = after.clone();
    let on = host.on.clone();
    host.on.spawn(async move {
        let look = || match watch.take() {
            Ok(0) => true,
            Ok(_) => {
                told();
                true
            }
            Err(_) => false,
        };
        let listen = async { while on.readable(watch.as_fd()).await.is_ok() && look() {} };
        // The last kill may be the one that ended the container: it is counted by then, and its event is there soon.
        let end = async {
            let how = ended.wait().await;
            look();
            done.set(how);
            on.sleep(Duration::from_millis(200)).await;
        };
        // Neither a group that is gone nor an error ends the wait for the other.
        first(
            async {
                listen.await;
                std::future::pending::<()>().await
            },
            end,
        )
        .await;
    });
    after
}
