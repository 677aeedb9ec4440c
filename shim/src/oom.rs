//! When does the kernel kill for lack of memory?

use std::os::fd::AsFd;
use std::time::Duration;

use runtime::cgroup::Record;
use runtime::cgroup::oom::Watch;

use crate::executor::{Once, first};
use crate::task::Host;

/// Tell each time that it does so in a cgroup, until `gone`. A container without a memory controller has no such times.
pub fn tell<T: Clone + 'static>(
    host: &Host,
    record: &Record,
    gone: Once<T>,
    mut told: impl FnMut() + 'static,
) {
    let mut watch = match Watch::new(record) {
        Ok(watch) => watch,
        Err(e) => {
            log::debug!("no word of lack of memory: {e:#}");
            return;
        }
    };
    let on = host.on.clone();
    host.on.spawn(async move {
        let listen = async {
            while on.readable(watch.as_fd()).await.is_ok() {
                match watch.take() {
                    Ok(0) => {}
                    Ok(_) => told(),
                    Err(_) => return,
                }
            }
        };
        // The last kill may be the one that ended the container: its event is there by then.
        let end = async {
            gone.wait().await;
            on.sleep(Duration::from_millis(200)).await;
        };
        first(listen, end).await;
    });
}
