//! What do criu's messages look like on the wire? (criu, images/rpc.proto; protobuf's encoding)
//! The few fields that we use, by number.

use crate::protobuf::{Fields, Message, Value};

/// Field numbers of `criu_opts`.
pub mod opts {
    pub const IMAGES_DIR_FD: u32 = 1;
    pub const PID: u32 = 2;
    pub const LEAVE_RUNNING: u32 = 3;
    pub const EXT_UNIX_SK: u32 = 4;
    pub const TCP_ESTABLISHED: u32 = 5;
    pub const EVASIVE_DEVICES: u32 = 6;
    pub const SHELL_JOB: u32 = 7;
    pub const FILE_LOCKS: u32 = 8;
    pub const LOG_LEVEL: u32 = 9;
    pub const LOG_FILE: u32 = 10;
    pub const PAGE_SERVER: u32 = 11;
    pub const NOTIFY_SCRIPTS: u32 = 12;
    pub const ROOT: u32 = 13;
    pub const PARENT_IMG: u32 = 14;
    pub const TRACK_MEM: u32 = 15;
    pub const AUTO_DEDUP: u32 = 16;
    pub const WORK_DIR_FD: u32 = 17;
    pub const LINK_REMAP: u32 = 18;
    pub const EXT_MNT: u32 = 23;
    pub const MANAGE_CGROUPS: u32 = 24;
    pub const CG_ROOT: u32 = 25;
    pub const RST_SIBLING: u32 = 26;
    pub const INHERIT_FD: u32 = 27;
    pub const MANAGE_CGROUPS_MODE: u32 = 34;
    pub const EXTERNAL: u32 = 37;
    pub const EMPTY_NS: u32 = 38;
    pub const JOIN_NS: u32 = 39;
    pub const FREEZE_CGROUP: u32 = 44;
    pub const TCP_SKIP_IN_FLIGHT: u32 = 46;
    pub const LAZY_PAGES: u32 = 48;
    pub const STATUS_FD: u32 = 49;
    pub const ORPHAN_PTS_MASTER: u32 = 50;
    pub const CONFIG_FILE: u32 = 51;
    pub const LSM_PROFILE: u32 = 53;
    pub const LSM_MOUNT_CONTEXT: u32 = 63;
}

/// `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    Notify = 6,
}

/// `criu_req`.
pub fn request(kind: Kind, options: Message) -> Message {
    Message::default().number(1, kind as u64).message(2, options)
}

/// The answer to a notification: go on.
pub fn notified() -> Message {
    Message::default().number(1, Kind::Notify as u64).flag(3, true)
}

/// What of `criu_resp` is of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    pub kind: u64,
    pub success: bool,
    /// Of the restored process.
    pub restored: Option<i32>,
    /// The name of an event, and the process it is about.
    pub notify: Option<(String, i32)>,
    pub errno: i32,
    pub message: String,
}

impl Response {
    /// `None`: not a message.
    pub fn parse(bytes: &[u8]) -> Option<Response> {
        let mut out = Response::default();
        for field in Fields(bytes) {
            match field? {
                (1, Value::Number(kind)) => out.kind = kind,
                (2, Value::Number(success)) => out.success = success != 0,
                (4, Value::Bytes(restore)) => out.restored = pid_in(restore, 1)?,
                (5, Value::Bytes(notify)) => {
                    let script = Fields(notify).flatten().find_map(|field| match field {
                        (1, Value::Bytes(name)) => Some(String::from_utf8_lossy(name).into_owned()),
                        _ => None,
                    });
                    out.notify = Some((script?, pid_in(notify, 2)?.unwrap_or(0)));
                }
                (7, Value::Number(errno)) => out.errno = errno as i32,
                (9, Value::Bytes(text)) => out.message = String::from_utf8_lossy(text).into_owned(),
                _ => {}
            }
        }
        Some(out)
    }
}

/// The number of a field; the outer `None`: not a message.
fn pid_in(bytes: &[u8], wanted: u32) -> Option<Option<i32>> {
    let mut found = None;
    for field in Fields(bytes) {
        if let (number, Value::Number(value)) = field?
            && number == wanted
        {
            found = i32::try_from(value).ok();
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn responses() {
        let notify = Message::default().bytes(1, "post-restore").number(2, 4711);
        let bytes = Message::default().number(1, 6).flag(2, true).message(5, notify);
        assert_eq!(
            Response::parse(bytes.as_bytes()),
            Some(Response {
                kind: 6,
                success: true,
                notify: Some(("post-restore".to_owned(), 4711)),
                ..Response::default()
            })
        );
        let failed = Message::default().number(1, 1).number(2, 0).number(7, 52).bytes(9, "no");
        let parsed = Response::parse(failed.as_bytes()).unwrap();
        assert_eq!((parsed.success, parsed.errno, parsed.message.as_str()), (false, 52, "no"));
        let restored =
            Message::default().number(1, 2).flag(2, true).message(4, Message::default().number(1, 9));
        assert_eq!(Response::parse(restored.as_bytes()).unwrap().restored, Some(9));
        for damaged in [&[0x80][..], &[0x22, 5, 1], &[0x0b]] {
            assert_eq!(Response::parse(damaged), None);
        }
    }

    proptest! {
        #[test]
        fn fuzz_response(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let again = Response::parse(&bytes);
            prop_assert_eq!(Response::parse(&bytes), again);
        }
    }
}
