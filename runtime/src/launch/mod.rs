//! Processes and their conversation; nothing else in the project clones a container.
//!
//! The common case is one clone: no stage process, no second execution of this program.
//!
//! ```text
//!  parent                                      init (pid 1 of a new pid namespace)
//!  folder, lock, state "creating"
//!  sources, start socket, cgroups
//!  clone3 ──────────────────────────────────▶  die with the parent
//!         ◀──────────────────────── NeedMaps   (user namespace) wait
//!  write the id maps
//!         ─ Continue ───────────────────────▶  become root of the user namespace
//!  (systemd) start the scope ─ Continue ────▶  enter the v1 cgroups, new cgroup namespace
//!  state: pid                                  mounts, devices
//!         ◀──────────────────────── RunHooks   (only if there are such hooks)
//!  prestart, createRuntime hooks
//!         ─ Continue ───────────────────────▶  createContainer hooks, pivot, sysctls, masks
//!         ◀──────────────────────── Terminal   (foreground run with a terminal)
//!         ◀─────────────────────────── Ready   (create) wait on the start socket
//!  pid file, exit                              startContainer hooks
//!                                              the trampoline: credentials, seccomp, execve
//!         ◀─────────────────────── Executing
//!         ◀────────────────────── end of file  (run) executed; without Executing before it: lost
//! ```
//!
//! A stage process stands between the two when namespaces must be joined before init is cloned (a user
//! namespace by path, or a new one beside joined ones):
//!
//! ```text
//!  parent ─ clone3 ─▶ stage: join, ─ clone3(CLONE_PARENT) ─▶ init
//!         ◀─ InitPid + pidfd ─ stage ends
//! ```
//!
//! Either side may answer `Failed` instead; the parent prints the child's error as its own, and undoes what it
//! did, newest first. Why the credentials change where they do: see `trampoline`.

pub mod channel;
pub mod container;
pub mod exec;
pub mod foreground;
mod idmaps;
mod init;
pub mod notify;
mod stage;

pub use container::{Outcome, create, start};
