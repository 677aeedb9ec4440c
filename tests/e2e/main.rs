//! Does the runtime keep its promises, seen from outside? One module a subject.

mod builds;
mod cgroups;
mod checkpoint;
mod concurrency;
mod contexts;
mod door;
mod errors;
mod exec;
mod faults;
mod hooks;
mod images;
mod landlock;
mod lifecycle;
mod mounts;
mod network;
mod notify;
mod options;
mod process;
mod rootless;
mod seccomp;
mod signals;
mod supervise;
mod terminal;
mod threats;
mod verbs;
