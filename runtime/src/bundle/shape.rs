//! What shape has a config.json? runtime-spec 1.3, Linux, as a table: read only when a config is not accepted,
//! and by `explain`.

use super::words::{
    DEVICE_RULE_TYPES, DEVICE_TYPES, IO_CLASSES, MEMORY_POLICY_FLAGS, MEMORY_POLICY_MODES, NAMESPACES,
    PERSONALITIES, RLIMITS, SCHED_FLAGS, SCHED_POLICIES, SECCOMP_ACTIONS, SECCOMP_ARCHS, SECCOMP_FLAGS,
    SECCOMP_OPERATORS,
};

/// What may stand in a place.
#[derive(Debug)]
pub enum Shape {
    Bool,
    Text,
    /// A whole number, from and to.
    Number(i128, i128),
    /// One word of a set: what it names, and the set.
    Word(&'static str, &'static [&'static str]),
    List(&'static Shape),
    /// Any keys, values of one shape.
    Map(&'static Shape),
    Object(&'static [Field]),
    /// Belongs to another platform.
    Foreign,
}

/// One property of an object.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub required: bool,
    pub shape: Shape,
}

const fn may(name: &'static str, shape: Shape) -> Field {
    Field { name, required: false, shape }
}

const fn must(name: &'static str, shape: Shape) -> Field {
    Field { name, required: true, shape }
}

use Shape::{Bool, Foreign, List, Map, Number, Object, Text, Word};

const I32: Shape = Number(i32::MIN as i128, i32::MAX as i128);
const I64: Shape = Number(i64::MIN as i128, i64::MAX as i128);
const U16: Shape = Number(0, u16::MAX as i128);
const U32: Shape = Number(0, u32::MAX as i128);
const U64: Shape = Number(0, u64::MAX as i128);
/// The highest number stands for "no id" in the kernel (CVE-2024-40635).
const ID: Shape = Number(0, u32::MAX as i128 - 1);
const TEXTS: Shape = List(&Text);

pub static SPEC: Shape = Object(&[
    // Required too: what may stand there is said by the check of its value.
    may("ociVersion", Text),
    may("root", Object(&[must("path", Text), may("readonly", Bool)])),
    may("mounts", List(&MOUNT)),
    may("process", Object(PROCESS_FIELDS)),
    may("hostname", Text),
    may("domainname", Text),
    may("hooks", HOOKS),
    may("annotations", Map(&Text)),
    may("linux", LINUX),
    may("solaris", Foreign),
    may("windows", Foreign),
    may("vm", Foreign),
    may("zos", Foreign),
    may("freebsd", Foreign),
]);

pub static PROCESS: Shape = Object(PROCESS_FIELDS);

const PROCESS_FIELDS: &[Field] = &[
    may("terminal", Bool),
    may("consoleSize", Object(&[must("height", U64), must("width", U64)])),
    may(
        "user",
        Object(&[
            may("uid", ID),
            may("gid", ID),
            may("umask", U32),
            may("additionalGids", List(&ID)),
            may("username", Text),
        ]),
    ),
    may("args", TEXTS),
    may("commandLine", Text),
    may("env", TEXTS),
    must("cwd", Text),
    may(
        "capabilities",
        Object(&[
            may("bounding", TEXTS),
            may("effective", TEXTS),
            may("inheritable", TEXTS),
            may("permitted", TEXTS),
            may("ambient", TEXTS),
        ]),
    ),
    may(
        "rlimits",
        List(&Object(&[must("type", Word("resource limit", RLIMITS)), must("soft", U64), must("hard", U64)])),
    ),
    may("noNewPrivileges", Bool),
    may("apparmorProfile", Text),
    may("oomScoreAdj", I32),
    may(
        "scheduler",
        Object(&[
            must("policy", Word("scheduling policy", SCHED_POLICIES)),
            may("nice", I32),
            may("priority", I32),
            may("flags", List(&Word("scheduling flag", SCHED_FLAGS))),
            may("runtime", U64),
            may("deadline", U64),
            may("period", U64),
        ]),
    ),
    may("selinuxLabel", Text),
    may("ioPriority", Object(&[must("class", Word("I/O class", IO_CLASSES)), may("priority", I32)])),
    may("execCPUAffinity", Object(&[may("initial", Text), may("final", Text)])),
];

const MOUNT: Shape = Object(&[
    must("destination", Text),
    may("type", Text),
    may("source", Text),
    may("options", TEXTS),
    may("uidMappings", MAPPINGS),
    may("gidMappings", MAPPINGS),
]);

const MAPPINGS: Shape = List(&Object(&[must("containerID", U32), must("hostID", U32), must("size", U32)]));

const HOOK_LIST: Shape =
    List(&Object(&[must("path", Text), may("args", TEXTS), may("env", TEXTS), may("timeout", I64)]));

const HOOKS: Shape = Object(&[
    may("prestart", HOOK_LIST),
    may("createRuntime", HOOK_LIST),
    may("createContainer", HOOK_LIST),
    may("startContainer", HOOK_LIST),
    may("poststart", HOOK_LIST),
    may("poststop", HOOK_LIST),
]);

const LINUX: Shape = Object(&[
    may("devices", List(&DEVICE)),
    may("netDevices", Map(&Object(&[may("name", Text)]))),
    may("uidMappings", MAPPINGS),
    may("gidMappings", MAPPINGS),
    may("namespaces", List(&Object(&[must("type", Word("namespace", NAMESPACES)), may("path", Text)]))),
    may("resources", Object(RESOURCE_FIELDS)),
    may("cgroupsPath", Text),
    may("rootfsPropagation", Text),
    may("seccomp", SECCOMP),
    may("sysctl", Map(&Text)),
    may("maskedPaths", TEXTS),
    may("readonlyPaths", TEXTS),
    may("mountLabel", Text),
    may(
        "intelRdt",
        Object(&[
            may("closID", Text),
            may("schemata", TEXTS),
            may("l3CacheSchema", Text),
            may("memBwSchema", Text),
            may("enableCMT", Bool),
            may("enableMBM", Bool),
            may("enableMonitoring", Bool),
        ]),
    ),
    may(
        "memoryPolicy",
        Object(&[
            must("mode", Word("memory policy", MEMORY_POLICY_MODES)),
            may("nodes", Text),
            may("flags", List(&Word("memory policy flag", MEMORY_POLICY_FLAGS))),
        ]),
    ),
    may(
        "personality",
        Object(&[must("domain", Word("execution domain", PERSONALITIES)), may("flags", TEXTS)]),
    ),
    may("timeOffsets", Map(&Object(&[may("secs", I64), may("nanosecs", Number(0, 999_999_999))]))),
]);

const DEVICE: Shape = Object(&[
    must("path", Text),
    must("type", Word("device type", DEVICE_TYPES)),
    may("major", I64),
    may("minor", I64),
    may("fileMode", U32),
    may("uid", ID),
    may("gid", ID),
]);

pub static RESOURCES: Shape = Object(RESOURCE_FIELDS);

const THROTTLES: Shape = List(&Object(&[must("major", I64), must("minor", I64), may("rate", U64)]));

const RESOURCE_FIELDS: &[Field] = &[
    may(
        "devices",
        List(&Object(&[
            must("allow", Bool),
            may("type", Word("device type", DEVICE_RULE_TYPES)),
            may("major", I64),
            may("minor", I64),
            may("access", Text),
        ])),
    ),
    may(
        "memory",
        Object(&[
            may("limit", I64),
            may("reservation", I64),
            may("swap", I64),
            may("kernel", I64),
            may("kernelTCP", I64),
            may("swappiness", U64),
            may("disableOOMKiller", Bool),
            may("useHierarchy", Bool),
            may("checkBeforeUpdate", Bool),
        ]),
    ),
    may(
        "cpu",
        Object(&[
            may("shares", U64),
            may("quota", I64),
            may("burst", U64),
            may("period", U64),
            may("realtimeRuntime", I64),
            may("realtimePeriod", U64),
            may("cpus", Text),
            may("mems", Text),
            may("idle", I64),
        ]),
    ),
    may("pids", Object(&[may("limit", I64)])),
    may(
        "blockIO",
        Object(&[
            may("weight", U16),
            may("leafWeight", U16),
            may(
                "weightDevice",
                List(&Object(&[
                    must("major", I64),
                    must("minor", I64),
                    may("weight", U16),
                    may("leafWeight", U16),
                ])),
            ),
            may("throttleReadBpsDevice", THROTTLES),
            may("throttleWriteBpsDevice", THROTTLES),
            may("throttleReadIOPSDevice", THROTTLES),
            may("throttleWriteIOPSDevice", THROTTLES),
        ]),
    ),
    may(
        "hugepageLimits",
        // The spec says uint64; engines also write -1.
        List(&Object(&[must("pageSize", Text), must("limit", Number(-1, u64::MAX as i128))])),
    ),
    may(
        "network",
        Object(&[
            may("classID", U32),
            may("priorities", List(&Object(&[must("name", Text), must("priority", U32)]))),
        ]),
    ),
    may("rdma", Map(&Object(&[may("hcaHandles", U32), may("hcaObjects", U32)]))),
    may("unified", Map(&Text)),
];

const ACTION: Shape = Word("seccomp action", SECCOMP_ACTIONS);

const SECCOMP: Shape = Object(&[
    must("defaultAction", ACTION),
    may("defaultErrnoRet", U32),
    may("architectures", List(&Word("architecture", SECCOMP_ARCHS))),
    may("flags", List(&Word("seccomp flag", SECCOMP_FLAGS))),
    may("listenerPath", Text),
    may("listenerMetadata", Text),
    may(
        "syscalls",
        List(&Object(&[
            must("names", TEXTS),
            must("action", ACTION),
            may("errnoRet", U32),
            may(
                "args",
                List(&Object(&[
                    must("index", U32),
                    must("value", U64),
                    may("valueTwo", U64),
                    must("op", Word("operator", SECCOMP_OPERATORS)),
                ])),
            ),
        ])),
    ),
]);
