//! What does each of the 17 calls do? (containerd.task.v2.Task and v3) One shim serves the containers of one pod, or a single one.
//!
//! ```text
//!            Create          Start            the process ends      Delete
//!  nothing ─────────▶ created ─────▶ running ─────────────────▶ stopped ─────▶ nothing
//!                        └──────── killed before its start ────────▲
//!  events:  create           start            exit                  delete
//! ```
//! The end of a container's first process is told after the ends of all others.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use report::{Kind, error};
use runtime::cgroup::{self, Record};
use runtime::protobuf::Message;
use sys::process::Exit;

use super::events::Events;
use super::message::{
    Any, CheckpointOptions, CheckpointTaskRequest, CloseIoRequest, ConnectResponse, ContainerRequest,
    CreateTaskRequest, CreateTaskResponse, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PidsResponse, ProcessDetails, ProcessInfo, ProcessRequest, ResizePtyRequest, ShutdownRequest,
    StartResponse, StateResponse, StatsResponse, TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded,
    TaskExecStarted, TaskExit, TaskIo, TaskOf, TaskStart, Timestamp, UpdateTaskRequest, WaitResponse, Whole,
};
use super::options::Options;
use super::stdio::{Held, Names};
use super::{metrics, rootfs, ttrpc};
use crate::copy::Terminal;
use crate::executor::Once;
use crate::exits::Ended;
use crate::oom;
use crate::task::{Checkpoint, Container, Host, Launched, not_found, wrong_state};

/// The containers of this shim.
pub struct Service {
    host: Host,
    events: Events,
    namespace: String,
    /// PATH: where the runtime is looked for.
    search: OsString,
    tasks: RefCell<BTreeMap<String, Rc<Task>>>,
    /// Names that a Create is at work for.
    creating: RefCell<BTreeSet<String>>,
    /// Set when the shim is to end.
    pub done: Once<()>,
}

struct Task {
    container: Container,
    options: Options,
    init: Rc<Process>,
    execs: RefCell<BTreeMap<String, Rc<Process>>>,
    /// Without a pid namespace of its own, processes may outlive the first one.
    own_pids: bool,
    cgroup: RefCell<Record>,
    paused: Cell<bool>,
    /// To be restored from when it is started.
    checkpoint: Option<Checkpoint>,
    rootfs: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Created = 1,
    Running = 2,
    Stopped = 3,
}

const PAUSED: u32 = 4;

struct Process {
    /// Empty: the container's first.
    exec_id: String,
    names: Names,
    /// What an exec is started from, JSON.
    spec: Vec<u8>,
    state: Cell<State>,
    pid: Cell<i32>,
    /// Its end, as the kernel has it.
    ended: RefCell<Option<Once<Ended>>>,
    /// Its end, when it was its turn to be told.
    exited: Once<Ended>,
    /// A Start that is at work, and when it is done.
    starting: RefCell<Option<Once<()>>>,
    held: RefCell<Held>,
    terminal: RefCell<Option<Terminal>>,
}

impl Process {
    fn new(exec_id: String, names: Names, spec: Vec<u8>) -> Process {
        Process {
            exec_id,
            names,
            spec,
            state: Cell::new(State::Created),
            pid: Cell::new(0),
            ended: RefCell::default(),
            exited: Once::default(),
            starting: RefCell::default(),
            held: RefCell::default(),
            terminal: RefCell::default(),
        }
    }

    /// It is there: take over what came of it.
    fn take(&self, host: &Host, launched: &mut Launched, mut held: Held) -> Result<()> {
        self.pid.set(launched.pid);
        self.ended.replace(Some(launched.ended.clone()));
        if let Some(terminal) = launched.terminal.take() {
            self.terminal.replace(Some(self.names.attach(host, terminal, &mut held)?));
        }
        self.held.replace(held);
        Ok(())
    }

    fn is_init(&self) -> bool {
        self.exec_id.is_empty()
    }

    fn end(&self, ended: Ended) {
        self.state.set(State::Stopped);
        self.held.borrow_mut().stdin = None;
        self.exited.set(ended);
    }

    /// The kernel has it still, so its number is its own.
    fn is_there(&self) -> bool {
        self.ended.borrow().as_ref().is_some_and(|ended| ended.get().is_none())
    }

    fn exit(&self) -> (u32, Option<Timestamp>) {
        match self.exited.get() {
            Some(ended) => (ended.status(), Some(ended.at.into())),
            None => (0, None),
        }
    }

    fn pid(&self) -> u32 {
        self.pid.get().cast_unsigned()
    }

    /// Nothing more will be read or written.
    async fn close(&self, host: &Host) {
        let terminal = self.terminal.borrow().clone();
        if let Some(terminal) = terminal {
            // Somebody may keep it open for ever.
            if host.on.within(Duration::from_secs(2), terminal.drained.wait()).await.is_none() {
                terminal.stop();
            }
        }
        self.terminal.take();
        self.held.take();
    }
}

fn parse<T: Whole>(payload: &[u8]) -> Result<T> {
    T::parse(payload).ok_or_else(|| error(Kind::BadInput, "the request's message is damaged"))
}

fn empty() -> Message {
    Empty::default().message()
}

impl Service {
    pub fn new(host: Host, events: Events, namespace: String, search: OsString) -> Rc<Service> {
        Rc::new(Service {
            host,
            events,
            namespace,
            search,
            tasks: RefCell::default(),
            creating: RefCell::default(),
            done: Once::default(),
        })
    }

    pub fn handler(self: &Rc<Self>) -> Rc<ttrpc::Handler> {
        let this = self.clone();
        Rc::new(move |service: &str, method: &str, payload| {
            let known = matches!(service, "containerd.task.v2.Task" | "containerd.task.v3.Task");
            let name = format!("{service}/{method}");
            let method = if known { method.to_owned() } else { String::new() };
            let this = this.clone();
            Box::pin(async move {
                let answer = this.call(&method, &payload).await;
                match &answer {
                    Ok(Some(_)) => log::debug!("{method}"),
                    Ok(None) => return Err(error(Kind::Unsupported, format!("{name}: no such method"))),
                    Err(e) => log::debug!("{method}: {}", report::line(e)),
                }
                answer.map(Option::unwrap_or_default)
            })
        })
    }

    /// Nothing is here, and nothing is coming.
    pub fn is_idle(&self) -> bool {
        self.tasks.borrow().is_empty() && self.creating.borrow().is_empty()
    }

    async fn call(self: &Rc<Self>, method: &str, payload: &[u8]) -> Result<Option<Message>> {
        Ok(Some(match method {
            "State" => self.state(&parse(payload)?)?,
            "Create" => self.create(parse(payload)?).await?,
            "Start" => self.start(&parse(payload)?).await?,
            "Delete" => self.delete(&parse(payload)?).await?,
            "Pids" => self.pids(&parse(payload)?)?,
            "Pause" => self.pause(&parse(payload)?).await?,
            "Resume" => self.resume(&parse(payload)?).await?,
            "Checkpoint" => self.checkpoint(&parse(payload)?).await?,
            "Kill" => self.kill(&parse(payload)?).await?,
            "Exec" => self.exec(parse(payload)?)?,
            "ResizePty" => self.resize(&parse(payload)?)?,
            "CloseIO" => self.close_io(&parse(payload)?)?,
            "Update" => self.update(&parse(payload)?).await?,
            "Wait" => self.wait(&parse(payload)?).await?,
            "Stats" => self.stats(&parse(payload)?)?,
            "Connect" => self.connect(&parse(payload)?)?,
            "Shutdown" => self.shutdown(&parse(payload)?),
            _ => return Ok(None),
        }))
    }

    fn task(&self, id: &str) -> Result<Rc<Task>> {
        self.tasks.borrow().get(id).cloned().ok_or_else(|| not_found(&format!("container {id}")))
    }

    async fn create(self: &Rc<Self>, request: CreateTaskRequest) -> Result<Message> {
        let id = request.id.clone();
        if id.is_empty() || request.bundle.is_empty() {
            return Err(error(Kind::BadInput, "Create: id and bundle must be given"));
        }
        if self.tasks.borrow().contains_key(&id) || !self.creating.borrow_mut().insert(id.clone()) {
            return Err(error(Kind::AlreadyExists, format!("container {id}: already exists")));
        }
        let made = self.create_task(&request).await;
        self.creating.borrow_mut().remove(&id);
        let task = made?;
        self.tasks.borrow_mut().insert(id.clone(), task.clone());
        let event = TaskCreate {
            container_id: id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(TaskIo {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            }),
            checkpoint: request.checkpoint,
            pid: task.init.pid(),
        };
        self.events.publish("/tasks/create", "TaskCreate", &event.message());
        if task.init.ended.borrow().is_some() {
            self.watch_init(&task);
        }
        Ok(CreateTaskResponse { pid: task.init.pid() }.message())
    }

    async fn create_task(&self, request: &CreateTaskRequest) -> Result<Rc<Task>> {
        let options = Options::parse(request.options.as_ref())?;
        let bundle = PathBuf::from(&request.bundle);
        let own_pids = has_own_pids(&bundle)?;
        options.write(&bundle)?;
        let rootfs = bundle.join("rootfs");
        rootfs::mount(&request.rootfs, &rootfs)?;
        let checkpoint = (!request.checkpoint.is_empty()).then(|| Checkpoint {
            image: PathBuf::from(&request.checkpoint),
            work: match options.criu_work_path.as_str() {
                "" => bundle.join("work"),
                path => PathBuf::from(path),
            },
        });
        let names = Names {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let container = Container {
            id: request.id.clone(),
            client: options.client(&self.namespace, &self.search),
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            next: Cell::new(0),
            bundle,
        };
        let task = Rc::new(Task {
            container,
            options,
            init: Rc::new(Process::new(String::new(), names, Vec::new())),
            execs: RefCell::default(),
            own_pids,
            cgroup: RefCell::default(),
            paused: Cell::new(false),
            checkpoint,
            rootfs,
        });
        if task.checkpoint.is_none()
            && let Err(e) = self.launch_init(&task, None).await
        {
            let e = e.context("OCI runtime create failed");
            return Err(match rootfs::unmount(&task.rootfs) {
                Ok(()) => e,
                Err(undo) => e.context(format!("{undo:#}")),
            });
        }
        Ok(task)
    }

    async fn launch_init(&self, task: &Rc<Task>, from: Option<&Checkpoint>) -> Result<()> {
        let init = &task.init;
        let id = &task.container.id;
        let (streams, held) = init.names.open(&self.host, id, &self.namespace, task.options.owner()).await?;
        let mut launched = task.container.create(&self.host, streams, from).await?;
        if let Err(e) = init.take(&self.host, &mut launched, held) {
            // It is there, but nobody would hear of it.
            return Err(match task.container.delete(&self.host).await {
                Ok(()) => e,
                Err(undo) => e.context(format!("{undo:#}")),
            });
        }
        match Record::of_process(launched.pid) {
            Ok(record) => {
                task.cgroup.replace(record);
            }
            // It may have ended already.
            Err(e) => log::debug!("cgroup of {id}: {e:#}"),
        }
        Ok(())
    }

    /// Tell when the kernel kills for lack of memory; the end, after that.
    fn watch_memory(&self, task: &Task, ended: Once<Ended>) -> Once<Ended> {
        let (events, id) = (self.events.clone(), task.container.id.clone());
        oom::tell(&self.host, &task.cgroup.borrow(), ended, move || {
            let event = TaskOf { container_id: id.clone() };
            events.publish("/tasks/oom", "TaskOOM", &event.message());
        })
    }

    /// Tell the end of the first process, after the ends of all others and after its start.
    fn watch_init(self: &Rc<Self>, task: &Rc<Task>) {
        let Some(ended) = task.init.ended.borrow().clone() else { return };
        let ended = self.watch_memory(task, ended);
        let (this, task) = (self.clone(), task.clone());
        self.host.on.spawn(async move {
            let ended = ended.wait().await;
            if !task.own_pids
                && let Err(e) = task.container.kill_all(&this.host, 9).await
            {
                log::warn!("kill what is left of {}: {}", task.container.id, report::line(&e));
            }
            let running = || {
                let execs = task.execs.borrow();
                execs.values().find(|exec| exec.state.get() == State::Running).map(|exec| exec.exited.clone())
            };
            while let Some(exited) = running() {
                if this.host.on.within(Duration::from_secs(10), exited.wait()).await.is_none() {
                    break;
                }
            }
            let starting = task.init.starting.borrow().clone();
            if let Some(starting) = starting {
                starting.wait().await;
            }
            this.tell_exit(&task, &task.init, ended);
        });
    }

    fn tell_exit(&self, task: &Task, process: &Process, ended: Ended) {
        process.end(ended);
        let container_id = task.container.id.clone();
        let id = if process.is_init() { container_id.clone() } else { process.exec_id.clone() };
        let event = TaskExit {
            container_id,
            id,
            pid: process.pid(),
            exit_status: ended.status(),
            exited_at: Some(ended.at.into()),
        };
        self.events.publish("/tasks/exit", "TaskExit", &event.message());
    }

    async fn start(self: &Rc<Self>, request: &ProcessRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let process = task.process(&request.exec_id)?;
        if process.state.get() != State::Created || process.starting.borrow().is_some() {
            return wrong_state(format!("{}: it was started already", process_name(&task, &process)));
        }
        let started = Once::default();
        process.starting.replace(Some(started.clone()));
        let done = if process.is_init() {
            self.start_init(&task).await
        } else {
            self.start_exec(&task, &process).await
        };
        started.set(());
        process.starting.take();
        done?;
        Ok(StartResponse { pid: process.pid() }.message())
    }

    async fn start_init(self: &Rc<Self>, task: &Rc<Task>) -> Result<()> {
        let init = &task.init;
        match &task.checkpoint {
            None => task.container.start(&self.host).await.context("OCI runtime start failed")?,
            Some(checkpoint) => {
                self.launch_init(task, Some(checkpoint)).await.context("OCI runtime restore failed")?;
                self.watch_init(task);
            }
        }
        init.state.set(State::Running);
        let event = TaskStart { container_id: task.container.id.clone(), pid: init.pid() };
        self.events.publish("/tasks/start", "TaskStart", &event.message());
        Ok(())
    }

    async fn start_exec(self: &Rc<Self>, task: &Rc<Task>, exec: &Rc<Process>) -> Result<()> {
        if task.init.state.get() == State::Stopped {
            return wrong_state(format!("container {}: it has stopped", task.container.id));
        }
        let launch = async {
            let owner = task.options.owner();
            let (streams, held) = exec.names.open(&self.host, &exec.exec_id, &self.namespace, owner).await?;
            let mut launched = task.container.exec(&self.host, &exec.spec, streams).await?;
            exec.take(&self.host, &mut launched, held)?;
            anyhow::Ok(launched.ended)
        };
        let ended = match launch.await.context("OCI runtime exec failed") {
            Ok(ended) => ended,
            Err(e) => {
                exec.end(Ended::now(Exit::Code(255)));
                return Err(e);
            }
        };
        exec.state.set(State::Running);
        let (container_id, exec_id) = (task.container.id.clone(), exec.exec_id.clone());
        let event = TaskExecStarted { container_id, exec_id, pid: exec.pid() };
        self.events.publish("/tasks/exec-started", "TaskExecStarted", &event.message());
        let (this, task, exec) = (self.clone(), task.clone(), exec.clone());
        self.host.on.spawn(async move {
            let ended = ended.wait().await;
            this.tell_exit(&task, &exec, ended);
        });
        Ok(())
    }

    fn exec(&self, request: ExecProcessRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        if request.exec_id.is_empty() {
            return Err(error(Kind::BadInput, "Exec: exec_id must be given"));
        }
        if task.execs.borrow().contains_key(&request.exec_id) {
            return Err(error(Kind::AlreadyExists, format!("exec {}: already exists", request.exec_id)));
        }
        let names = Names {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.map(|any| any.value).unwrap_or_default();
        let process = Process::new(request.exec_id.clone(), names, spec);
        task.execs.borrow_mut().insert(request.exec_id.clone(), Rc::new(process));
        let event = TaskExecAdded { container_id: request.id, exec_id: request.exec_id };
        self.events.publish("/tasks/exec-added", "TaskExecAdded", &event.message());
        Ok(empty())
    }

    async fn delete(&self, request: &ProcessRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let process = task.process(&request.exec_id)?;
        // A container that was made and never started may be deleted; an exec too.
        let created = process.state.get() == State::Created && process.starting.borrow().is_none();
        if process.state.get() != State::Stopped && !created {
            return wrong_state(format!("{}: it is running", process_name(&task, &process)));
        }
        if process.is_init() {
            task.container.delete(&self.host).await?;
            if created && process.is_there() {
                // `delete` has killed it.
                process.exited.wait().await;
            }
        }
        process.close(&self.host).await;
        let (exit_status, exited_at) = process.exit();
        let pid = process.pid();
        if process.is_init() {
            rootfs::unmount(&task.rootfs)?;
            self.tasks.borrow_mut().remove(&request.id);
            let event = TaskDelete {
                container_id: request.id.clone(),
                pid,
                exit_status,
                exited_at: exited_at.clone(),
                id: String::new(),
            };
            self.events.publish("/tasks/delete", "TaskDelete", &event.message());
        } else {
            task.execs.borrow_mut().remove(&process.exec_id);
        }
        Ok(DeleteResponse { pid, exit_status, exited_at }.message())
    }

    fn state(&self, request: &ProcessRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let process = task.process(&request.exec_id)?;
        let status = match process.state.get() {
            State::Running if task.paused.get() => PAUSED,
            state => state as u32,
        };
        let (exit_status, exited_at) = process.exit();
        let names = process.names.clone();
        Ok(StateResponse {
            id: task.container.id.clone(),
            bundle: task.container.bundle.to_string_lossy().into_owned(),
            pid: process.pid(),
            status,
            stdin: names.stdin,
            stdout: names.stdout,
            stderr: names.stderr,
            terminal: names.terminal,
            exit_status,
            exited_at,
            exec_id: request.exec_id.clone(),
        }
        .message())
    }

    async fn kill(&self, request: &KillRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let signal = i32::try_from(request.signal).unwrap_or(i32::MAX);
        if request.exec_id.is_empty() && (request.all || (task.paused.get() && signal == 9)) {
            if request.all {
                task.container.kill_all(&self.host, signal).await?;
            } else {
                task.container.kill(&self.host, signal).await?;
                task.paused.set(false);
            }
            return Ok(empty());
        }
        let process = task.process(&request.exec_id)?;
        if !process.is_there() {
            return match process.state.get() {
                State::Created => {
                    wrong_state(format!("{}: it was not started", process_name(&task, &process)))
                }
                _ => Err(error(Kind::NotFound, "process already finished")),
            };
        }
        // Not waited for yet, so the number can be nobody else's.
        match sys::process::signal(process.pid.get(), signal) {
            Ok(()) => Ok(empty()),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                Err(error(Kind::BadInput, format!("{}: no such signal", request.signal)))
            }
            Err(e) => Err(e).with_context(|| format!("signal {}", process_name(&task, &process))),
        }
    }

    fn pids(&self, request: &ContainerRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let mut pids = cgroup::pids(&task.cgroup.borrow())?;
        if pids.is_empty() && task.init.is_there() {
            pids.push(task.init.pid.get());
        }
        let execs = task.execs.borrow();
        let info = |pid: i32| {
            let exec = execs.values().find(|exec| exec.pid.get() == pid && exec.is_there());
            exec.map(|exec| {
                let details = ProcessDetails { exec_id: exec.exec_id.clone() };
                Any::of("containerd.runc.v1.ProcessDetails", &details.message())
            })
        };
        let processes =
            pids.iter().map(|pid| ProcessInfo { pid: pid.cast_unsigned(), info: info(*pid) }).collect();
        Ok(PidsResponse { processes }.message())
    }

    async fn pause(&self, request: &ContainerRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        task.container.pause(&self.host).await?;
        task.paused.set(true);
        let event = TaskOf { container_id: request.id.clone() };
        self.events.publish("/tasks/paused", "TaskPaused", &event.message());
        Ok(empty())
    }

    async fn resume(&self, request: &ContainerRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        task.container.resume(&self.host).await?;
        task.paused.set(false);
        let event = TaskOf { container_id: request.id.clone() };
        self.events.publish("/tasks/resumed", "TaskResumed", &event.message());
        Ok(empty())
    }

    async fn checkpoint(&self, request: &CheckpointTaskRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let options: CheckpointOptions = match &request.options {
            Some(any) if !any.type_url.is_empty() => parse(&any.value)?,
            _ => CheckpointOptions::default(),
        };
        let first = |paths: [&String; 2]| paths.into_iter().find(|path| !path.is_empty()).cloned();
        let image = first([&options.image_path, &request.path]);
        let image = image.ok_or_else(|| error(Kind::BadInput, "Checkpoint: path must be given"))?;
        let work = first([&options.work_path, &task.options.criu_work_path]);
        let work = work.unwrap_or_else(|| task.container.bundle.join("work").to_string_lossy().into_owned());
        let mut args = vec!["--image-path".to_owned(), image, "--work-path".to_owned(), work];
        for (wanted, flag) in [
            (!options.exit, "--leave-running"),
            (options.open_tcp, "--tcp-established"),
            (options.external_unix_sockets, "--ext-unix-sk"),
            (options.terminal, "--shell-job"),
            (options.file_locks, "--file-locks"),
        ] {
            if wanted {
                args.push(flag.to_owned());
            }
        }
        for namespace in options.empty_namespaces {
            args.extend(["--empty-ns".to_owned(), namespace]);
        }
        if !options.cgroups_mode.is_empty() {
            args.extend(["--manage-cgroups-mode".to_owned(), options.cgroups_mode]);
        }
        args.push(request.id.clone());
        task.container.call(&self.host, "checkpoint", args, None).await?;
        let event = TaskCheckpointed { container_id: request.id.clone(), checkpoint: request.path.clone() };
        self.events.publish("/tasks/checkpointed", "TaskCheckpointed", &event.message());
        Ok(empty())
    }

    fn resize(&self, request: &ResizePtyRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let process = task.process(&request.exec_id)?;
        let small = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = sys::tty::Size { rows: small(request.height), columns: small(request.width) };
        // As with runc: without a terminal there is nothing to do.
        if let Some(terminal) = process.terminal.borrow().as_ref() {
            terminal.resize(size).context("resize the terminal")?;
        }
        Ok(empty())
    }

    fn close_io(&self, request: &CloseIoRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let process = task.process(&request.exec_id)?;
        if request.stdin {
            process.held.borrow_mut().stdin = None;
        }
        Ok(empty())
    }

    async fn update(&self, request: &UpdateTaskRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let resources = request.resources.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
        if resources.is_empty() {
            return Err(error(Kind::BadInput, "Update: resources must be given"));
        }
        let args = ["--resources".to_owned(), "-".to_owned(), request.id.clone()];
        task.container.call(&self.host, "update", args, Some(resources)).await?;
        Ok(empty())
    }

    async fn wait(&self, request: &ProcessRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let exited = task.process(&request.exec_id)?.exited.clone();
        drop(task);
        let ended = exited.wait().await;
        Ok(WaitResponse { exit_status: ended.status(), exited_at: Some(ended.at.into()) }.message())
    }

    fn stats(&self, request: &ContainerRequest) -> Result<Message> {
        let task = self.task(&request.id)?;
        let stats = metrics::of(&task.cgroup.borrow())?;
        Ok(StatsResponse { stats: Some(stats) }.message())
    }

    fn connect(&self, request: &ContainerRequest) -> Result<Message> {
        let task_pid = self.task(&request.id).map(|task| task.init.pid()).unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, version }.message())
    }

    fn shutdown(&self, _: &ShutdownRequest) -> Message {
        // Others of the pod are here still.
        if self.is_idle() {
            self.done.set(());
        }
        empty()
    }
}

impl Task {
    /// By the name of an exec; without one, the container's first.
    fn process(&self, exec_id: &str) -> Result<Rc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs.borrow().get(exec_id).cloned().ok_or_else(|| not_found(&format!("exec {exec_id}")))
    }
}

fn process_name(task: &Task, process: &Process) -> String {
    match process.exec_id.as_str() {
        "" => format!("container {}", task.container.id),
        exec => format!("exec {exec}"),
    }
}

/// Does the config give the container a pid namespace of its own?
fn has_own_pids(bundle: &Path) -> Result<bool> {
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let config: Config = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(config.linux.namespaces.iter().any(|n| n.kind == "pid" && n.path.is_empty()))
}

/// What of config.json is of interest here.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct Config {
    pub annotations: BTreeMap<String, String>,
    pub linux: Linux,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}
