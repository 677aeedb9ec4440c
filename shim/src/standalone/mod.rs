//! The second door: one container, supervised with no daemon.
//!
//! ```text
//!  berth-shim run ── starts ─▶ keeper ── starts, again and again ─▶ supervisor ── task ─▶ runtime
//!       │                        │ subreaper, holds the terminal       │ subreaper, parent of the container
//!       └──── control socket ────┼────────────────────────────────────▶│
//!                                ▼                                     ▼
//!             takes the container over when the          logs, restarts, health, exit status
//!             supervisor is killed, and starts another
//! ```
//! Either of the two may be killed: a supervisor without a keeper becomes one and starts another supervisor. With both gone, any
//! command puts up new ones, and they adopt the container by its pidfd.
//!
//! ```text
//!  ROOT/ID/               0700
//!    options.json         what was asked for, written once
//!    state.json           what is: replaced as a whole
//!    lock                 held by the supervisor
//!    control.sock         0600: JSON lines
//!    stdout, stderr       fifos, which the container writes to; whoever supervises reads
//!    container.log        the log, unless another place was named
//!    config.json          the bundle's, with what the options change
//!    init.pid, log.json … of the runtime
//! ```

mod args;
mod attach;
mod bundle;
mod cli;
mod control;
mod health;
mod keeper;
mod logfile;
mod logs;
mod state;
mod supervisor;
mod unit;

pub use cli::{Environment, command, main};
pub(crate) use logs::{Log, Stream};
pub(crate) use state::{LogDriver, LogOptions, parse_size};
