//! Which messages do containerd and a shim exchange? (containerd, api/runtime/task/v3/shim.proto, api/events/task.proto, api/types,
//! api/runtime/bootstrap/v1; task v2 has the same ones under another name.) The numbers are the fields'.

use std::time::{SystemTime, UNIX_EPOCH};

use runtime::protobuf::{Message, Value};

/// How a type stands in a message. What has its default value does not stand there.
pub trait Field {
    /// Take over what was read; `None`: it is of another type.
    fn read(&mut self, value: Value<'_>) -> Option<()>;
    fn write(&self, into: Message, field: u32) -> Message;
}

/// A message as a whole.
pub trait Whole: Sized + Default {
    /// `None`: damaged. Fields that are not known are passed over.
    fn parse(bytes: &[u8]) -> Option<Self>;
    fn message(&self) -> Message;
}

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($number:literal $field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name { $(pub $field: $kind),* }

        impl Whole for $name {
            fn parse(bytes: &[u8]) -> Option<Self> {
                #[allow(unused_mut, reason = "some messages are empty")]
                let mut out = Self::default();
                for field in runtime::protobuf::Fields(bytes) {
                    match field? {
                        $(($number, value) => Field::read(&mut out.$field, value)?,)*
                        _ => {}
                    }
                }
                Some(out)
            }

            fn message(&self) -> runtime::protobuf::Message {
                let out = runtime::protobuf::Message::default();
                $(let out = Field::write(&self.$field, out, $number);)*
                out
            }
        }
    )*};
}

pub(super) use messages;

impl Field for String {
    fn read(&mut self, value: Value<'_>) -> Option<()> {
        let Value::Bytes(bytes) = value else { return None };
        *self = std::str::from_utf8(bytes).ok()?.to_owned();
        Some(())
    }
    fn write(&self, into: Message, field: u32) -> Message {
        if self.is_empty() { into } else { into.bytes(field, self) }
    }
}

impl Field for Vec<u8> {
    fn read(&mut self, value: Value<'_>) -> Option<()> {
        let Value::Bytes(bytes) = value else { return None };
        *self = bytes.to_vec();
        Some(())
    }
    fn write(&self, into: Message, field: u32) -> Message {
        if self.is_empty() { into } else { into.bytes(field, self) }
    }
}

impl Field for Vec<String> {
    fn read(&mut self, value: Value<'_>) -> Option<()> {
        let mut one = String::new();
        one.read(value)?;
        self.push(one);
        Some(())
    }
    fn write(&self, into: Message, field: u32) -> Message {
        self.iter().fold(into, |into, one| into.bytes(field, one))
    }
}

macro_rules! numbers {
    ($($kind:ty),*) => {$(
        impl Field for $kind {
            fn read(&mut self, value: Value<'_>) -> Option<()> {
                let Value::Number(number) = value else { return None };
                // Protobuf takes the lower bits of what is too large.
                *self = number as $kind;
                Some(())
            }
            fn write(&self, into: Message, field: u32) -> Message {
                // A negative number is written in ten bytes, whatever its type.
                if *self == 0 { into } else { into.number(field, *self as u64) }
            }
        }
    )*};
}

numbers!(u32, u64, i32, i64);

/// A list of numbers stands packed: their bytes one after another. Some write them singly.
impl Field for Vec<u64> {
    fn read(&mut self, value: Value<'_>) -> Option<()> {
        match value {
            Value::Number(number) => self.push(number),
            Value::Bytes(bytes) => self.extend(runtime::protobuf::packed(bytes)?),
        }
        Some(())
    }
    fn write(&self, into: Message, field: u32) -> Message {
        if self.is_empty() { into } else { into.packed(field, self) }
    }
}

impl Field for bool {
    fn read(&mut self, value: Value<'_>) -> Option<()> {
        let Value::Number(number) = value else { return None };
        *self = number != 0;
        Some(())
    }
    fn write(&self, into: Message, field: u32) -> Message {
        into.flag(field, *self)
    }
}

impl Field for f64 {
    fn read(&mut self, value: Value<'_>) -> Option<()> {
        let Value::Bytes(bytes) = value else { return None };
        *self = f64::from_le_bytes(bytes.try_into().ok()?);
        Some(())
    }
    fn write(&self, into: Message, field: u32) -> Message {
        if *self == 0.0 { into } else { into.fixed64(field, self.to_bits()) }
    }
}

impl<T: Whole> Field for Option<T> {
    fn read(&mut self, value: Value<'_>) -> Option<()> {
        let Value::Bytes(bytes) = value else { return None };
        *self = Some(T::parse(bytes)?);
        Some(())
    }
    fn write(&self, into: Message, field: u32) -> Message {
        match self {
            Some(one) => into.message(field, one.message()),
            None => into,
        }
    }
}

impl<T: Whole> Field for Vec<T> {
    fn read(&mut self, value: Value<'_>) -> Option<()> {
        let Value::Bytes(bytes) = value else { return None };
        self.push(T::parse(bytes)?);
        Some(())
    }
    fn write(&self, into: Message, field: u32) -> Message {
        self.iter().fold(into, |into, one| into.message(field, one.message()))
    }
}

messages! {
    /// google.protobuf.Any
    Any { 1 type_url: String, 2 value: Vec<u8> }
    /// google.protobuf.Timestamp
    Timestamp { 1 seconds: i64, 2 nanos: i32 }
    /// google.protobuf.Empty
    Empty {}
    /// containerd.types.Mount
    Mount { 1 kind: String, 2 source: String, 3 target: String, 4 options: Vec<String> }

    CreateTaskRequest {
        1 id: String, 2 bundle: String, 3 rootfs: Vec<Mount>, 4 terminal: bool, 5 stdin: String, 6 stdout: String, 7 stderr: String,
        8 checkpoint: String, 9 parent_checkpoint: String, 10 options: Option<Any>,
    }
    CreateTaskResponse { 1 pid: u32 }
    /// What names a process in Start, Delete, State and Wait.
    ProcessRequest { 1 id: String, 2 exec_id: String }
    /// What names a container in Pids, Pause, Resume, Stats and Connect.
    ContainerRequest { 1 id: String }
    StartResponse { 1 pid: u32 }
    DeleteResponse { 1 pid: u32, 2 exit_status: u32, 3 exited_at: Option<Timestamp> }
    ExecProcessRequest {
        1 id: String, 2 exec_id: String, 3 terminal: bool, 4 stdin: String, 5 stdout: String, 6 stderr: String, 7 spec: Option<Any>,
    }
    ResizePtyRequest { 1 id: String, 2 exec_id: String, 3 width: u32, 4 height: u32 }
    StateResponse {
        1 id: String, 2 bundle: String, 3 pid: u32, 4 status: u32, 5 stdin: String, 6 stdout: String, 7 stderr: String,
        8 terminal: bool, 9 exit_status: u32, 10 exited_at: Option<Timestamp>, 11 exec_id: String,
    }
    KillRequest { 1 id: String, 2 exec_id: String, 3 signal: u32, 4 all: bool }
    CloseIoRequest { 1 id: String, 2 exec_id: String, 3 stdin: bool }
    PidsResponse { 1 processes: Vec<ProcessInfo> }
    ProcessInfo { 1 pid: u32, 2 info: Option<Any> }
    /// containerd.runc.v1.ProcessDetails
    ProcessDetails { 1 exec_id: String }
    CheckpointTaskRequest { 1 id: String, 2 path: String, 3 options: Option<Any> }
    UpdateTaskRequest { 1 id: String, 2 resources: Option<Any> }
    WaitResponse { 1 exit_status: u32, 2 exited_at: Option<Timestamp> }
    StatsResponse { 1 stats: Option<Any> }
    ConnectResponse { 1 shim_pid: u32, 2 task_pid: u32, 3 version: String }
    ShutdownRequest { 1 id: String, 2 now: bool }

    /// containerd.runc.v1.Options; 8 was criu_path until containerd 2.0.
    RuncOptions {
        1 no_pivot_root: bool, 2 no_new_keyring: bool, 3 shim_cgroup: String, 4 io_uid: u32, 5 io_gid: u32, 6 binary_name: String,
        7 root: String, 8 criu_path: String, 9 systemd_cgroup: bool, 10 criu_image_path: String, 11 criu_work_path: String,
    }
    /// containerd.runc.v1.CheckpointOptions
    CheckpointOptions {
        1 exit: bool, 2 open_tcp: bool, 3 external_unix_sockets: bool, 4 terminal: bool, 5 file_locks: bool,
        6 empty_namespaces: Vec<String>, 7 cgroups_mode: String, 8 image_path: String, 9 work_path: String,
    }
    /// runtimeoptions.v1.Options: what the CRI plugin and dockerd send to runtimes that they do not know.
    GenericOptions { 1 type_url: String, 2 config_path: String, 3 config_body: String }

    TaskCreate { 1 container_id: String, 2 bundle: String, 3 rootfs: Vec<Mount>, 4 io: Option<TaskIo>, 5 checkpoint: String, 6 pid: u32 }
    TaskIo { 1 stdin: String, 2 stdout: String, 3 stderr: String, 4 terminal: bool }
    TaskStart { 1 container_id: String, 2 pid: u32 }
    TaskDelete { 1 container_id: String, 2 pid: u32, 3 exit_status: u32, 4 exited_at: Option<Timestamp>, 5 id: String }
    TaskExit { 1 container_id: String, 2 id: String, 3 pid: u32, 4 exit_status: u32, 5 exited_at: Option<Timestamp> }
    /// TaskOOM, TaskPaused, TaskResumed: they say of which container.
    TaskOf { 1 container_id: String }
    TaskExecAdded { 1 container_id: String, 2 exec_id: String }
    TaskExecStarted { 1 container_id: String, 2 exec_id: String, 3 pid: u32 }
    TaskCheckpointed { 1 container_id: String, 2 checkpoint: String }
    /// containerd.services.events.ttrpc.v1.ForwardRequest and its Envelope
    ForwardRequest { 1 envelope: Option<Envelope> }
    Envelope { 1 timestamp: Option<Timestamp>, 2 namespace: String, 3 topic: String, 4 event: Option<Any> }

    /// ttrpc.Request; its metadata is of no interest here.
    Request { 1 service: String, 2 method: String, 3 payload: Vec<u8>, 4 timeout_nano: i64 }
    /// ttrpc.Response
    Response { 1 status: Option<Status>, 2 payload: Vec<u8> }
    /// google.rpc.Status
    Status { 1 code: i32, 2 message: String }

    /// containerd.runtime.bootstrap.v1.BootstrapParams
    BootstrapParams {
        1 instance_id: String, 2 namespace: String, 3 log_level: i32, 4 containerd_version: String, 5 ttrpc_address: String,
        6 grpc_address: String, 7 containerd_binary: String, 8 extensions: Vec<Extension>, 9 socket_dir: String,
    }
    Extension { 1 value: Option<Any> }

    /// containerd.types.RuntimeInfo
    RuntimeInfo { 1 name: String, 2 version: Option<RuntimeVersion>, 3 options: Option<Any>, 4 features: Option<Any> }
    RuntimeVersion { 1 version: String, 2 revision: String }
}

impl Any {
    /// The message, with containerd's short name of its type.
    pub fn of(name: &str, message: &Message) -> Any {
        Any { type_url: name.to_owned(), value: message.as_bytes().to_vec() }
    }

    /// The type without what may stand before its name.
    pub fn name(&self) -> &str {
        self.type_url.rsplit('/').next().unwrap_or_default()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: since.as_secs().cast_signed(), nanos: since.subsec_nanos().cast_signed() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let request = CreateTaskRequest {
            id: "web".to_owned(),
            rootfs: vec![
                Mount {
                    kind: "overlay".to_owned(),
                    options: vec!["a=b".to_owned(), "ro".to_owned()],
                    ..Mount::default()
                },
                Mount::default(),
            ],
            terminal: true,
            options: Some(Any::of("x.Y", &Timestamp { seconds: -1, nanos: 5 }.message())),
            ..CreateTaskRequest::default()
        };
        let bytes = request.message();
        assert_eq!(CreateTaskRequest::parse(bytes.as_bytes()), Some(request));
        // As protoc writes it: defaults are left out, an empty message in a list is there.
        assert_eq!(KillRequest { signal: 9, ..KillRequest::default() }.message().as_bytes(), [0x18, 9]);
        assert_eq!(KillRequest::parse(&[0x1a, 0]), None, "a text where a number belongs");
    }

    proptest! {
        #[test]
        fn fuzz_messages(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(request) = CreateTaskRequest::parse(&bytes) {
                prop_assert_eq!(CreateTaskRequest::parse(request.message().as_bytes()), Some(request));
            }
            Request::parse(&bytes);
        }
    }
}
