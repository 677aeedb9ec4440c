"""A kubelet's part, as far as a container runtime sees of it: pods and containers over CRI (runtime.v1), spoken to containerd's CRI plugin.

The messages are written down field by field, by the numbers of the CRI's api.proto; gRPC itself is Debian's python3-grpcio.
"""
import glob, json, os, sys, time

sys.path.append("/usr/lib/python3/dist-packages")
try:
    import grpc
except ImportError:
    grpc = None

from common import MIB, Failed, image_archive, memory_limit, ok, parent_of, same, until
from engines import Client

RUNNING, EXITED = 1, 2
POD, CONTAINER, NODE = 0, 1, 2


# ---- protobuf: {field number: value}, where a value is a number, text, bytes, a message, or a list of such

def varint(n):
    out = b""
    n &= (1 << 64) - 1
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def encode(message):
    out = b""
    for number, value in message.items():
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, (bool, int)):
                out += varint(number << 3) + varint(int(v))
            else:
                data = encode(v) if isinstance(v, dict) else v.encode() if isinstance(v, str) else v
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def decode(data):
    """{field number: [number or bytes]}"""
    found, at = {}, 0

    def number():
        nonlocal at
        n, shift = 0, 0
        while True:
            byte = data[at]
            n, shift, at = n | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return n
    while at < len(data):
        key = number()
        if key & 7 == 0:
            value = number()
        elif key & 7 == 2:
            size = number()
            value, at = data[at:at + size], at + size
        else:
            size = 8 if key & 7 == 1 else 4
            value, at = data[at:at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def one(message, *path):
    """the value at a path of field numbers, or nothing"""
    for n, field in enumerate(path):
        values = message.get(field)
        if not values:
            return None
        message = decode(values[0]) if n + 1 < len(path) else values[0]
    return message


class Cri(Client):
    name, needs = "cri", {"/usr/bin/containerd": "containerd", "/usr/bin/ctr": "containerd"}
    image = "docker.io/library/berthbox:1"
    pause = "docker.io/library/berthpause:1"

    def start(self):
        if grpc is None:
            raise Failed("python3-grpcio is not installed")
        image_archive(self.dir + "/pause.tar", self.pause, ["sleep", "1000000"])
        plugin = 'plugins."io.containerd.grpc.v1.cri"'
        text = 'version = 2\nroot = "%s/data"\nstate = "/run/berth-cri"\n[grpc]\n  address = "/run/berth-cri.sock"\n[%s]\n  sandbox_image = "%s"\n  restrict_oom_score_adj = true\n' % (self.dir, plugin, self.pause)
        text += '  [%s.cni]\n    bin_dir = "/usr/lib/cni"\n    conf_dir = "%s/cni"\n  [%s.containerd]\n    default_runtime_name = "runc"\n' % (plugin, self.dir, plugin)
        for n, p in self.o.runtimes.items():
            kind = "io.containerd.berth.v2" if n == "shim" else "io.containerd.runc.v2"
            text += '    [%s.containerd.runtimes.%s]\n      runtime_type = "%s"\n      [%s.containerd.runtimes.%s.options]\n        BinaryName = "%s"\n        SystemdCgroup = %s\n' % (
                plugin, n, kind, plugin, n, p, "true" if self.o.cgroup_driver == "systemd" else "false")
        open(self.dir + "/config.toml", "w").write(text)
        # A network for each pod, where the plugins for it are there; the host's otherwise.
        self.network = POD if os.access((self.o.root or "") + "/usr/lib/cni/bridge", os.X_OK) else NODE
        os.makedirs(self.dir + "/cni")
        json.dump({"cniVersion": "0.4.0", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "cni-berth", "isGateway": True, "ipam": {"type": "host-local", "dataDir": self.dir + "/addresses", "ranges": [[{"subnet": "10.202.0.0/24"}]]}}]},
            open(self.dir + "/cni/10-pods.conflist", "w"))
        self.base = [*self.o.enter, "/usr/bin/ctr", "--address", "/run/berth-cri.sock", "--namespace", "k8s.io"]
        self.daemon([*self.o.enter, "/usr/bin/containerd", "--config", self.dir + "/config.toml"], self.base + ["version"], "containerd")
        ok([*self.base, "image", "import", self.o.image])
        ok([*self.base, "image", "import", self.dir + "/pause.tar"])
        self.channel = grpc.insecure_channel("unix:///run/berth-cri.sock")

    def version(self):
        return "v1, containerd %s" % ok([*self.o.enter, "/usr/bin/containerd", "--version"]).split()[2]

    def call(self, method, message):
        stub = self.channel.unary_unary("/runtime.v1.RuntimeService/" + method)
        try:
            return decode(stub(encode(message), timeout=60))
        except grpc.RpcError as e:
            raise Failed("%s: %s" % (method, e.details())) from e

    # ---- pods and containers

    def run_pod(self, rt, **more):
        self.n += 1
        name = "pod%d" % self.n
        options = {1: self.network, 2: more.get("pid", CONTAINER)}
        config = {1: {1: name, 2: "uid-" + name, 3: "default"}, 3: self.dir + "/logs-" + name, 8: {1: self.cgroup_parent(), 2: {1: options}}}
        if self.network == POD:
            config[2] = name
        id = one(self.call("RunPodSandbox", {1: config, 2: rt}), 1).decode()
        return id, config

    def create(self, pod, name, command, **more):
        """a started container of the pod"""
        id, config = pod
        security = {3: {1: self.network, 2: more.get("pid", CONTAINER)}, **more.get("security", {})}
        container = {1: {1: name}, 2: {1: self.image}, 3: command, 6: [{1: k, 2: v} for k, v in more.get("env", {}).items()], 7: more.get("mounts", []), 11: name + ".log",
                     15: {1: more.get("resources", {}), 2: security}}
        made = one(self.call("CreateContainer", {1: id, 2: container, 3: config}), 1).decode()
        self.call("StartContainer", {1: made})
        return made

    def status(self, c):
        return decode(one(self.call("ContainerStatus", {1: c, 2: True}), 1))

    def state(self, c):
        return one(self.status(c), 3) or 0

    def pid(self, c):
        for line in ok([*self.base, "task", "ls"]).splitlines()[1:]:
            if line.split()[0] == c:
                return line.split()[1]
        raise Failed("no task " + c)

    def exec(self, c, *words):
        r = self.call("ExecSync", {1: c, 2: list(words), 3: 20})
        return (one(r, 3) or 0, (one(r, 1) or b"").decode())

    def log(self, pod, name):
        return open("%s/%s.log" % (pod[1][3], name)).read().splitlines()

    def remove(self, pod):
        self.call("StopPodSandbox", {1: pod[0]})
        self.call("RemovePodSandbox", {1: pod[0]})

    # ---- the steps

    def steps(self):
        return [("a pod of two containers, one network", self.s_pod), ("exec: output and exit code", self.s_exec), ("log", self.s_log), ("limits in force; update; stats", self.s_limits),
                ("user, groups, read-only root, seccomp, capabilities", self.s_confined), ("volumes, environment", self.s_volume), ("lack of memory is reported", self.s_oom),
                ("stop: 143; after the grace time 137", self.s_stop), ("a container again in its pod", self.s_again), ("processes shared by the pod", self.s_pids), ("a pod is removed whole", self.s_remove), ("nothing left", self.s_left)]

    def s_pod(self, rt):
        self.pod = self.run_pod(rt)
        self.a = self.create(self.pod, "a", ["sh", "-c", "mkdir /tmp/w; echo served >/tmp/w/index.html; exec httpd -f -p 8090 -h /tmp/w"])
        self.b = self.create(self.pod, "b", ["sh", "-c", "echo out; echo err >&2; trap 'exit 4' TERM; while :; do sleep 0.1; done"], resources={4: 64 * MIB, 2: 50000, 1: 100000})
        same("states", (self.state(self.a), self.state(self.b)), (RUNNING, RUNNING))
        until("b reaches a on the pod's loopback", lambda: self.exec(self.b, "wget", "-q", "-O-", "http://127.0.0.1:8090/") == (0, "served\n"))
        if "httpd" in self.exec(self.b, "ps")[1]:
            raise Failed("b sees a's process, though their pids are not shared")
        shims = {parent_of(self.pid(c)) for c in (self.pod[0], self.a, self.b)}
        same("shims of the pod", len(shims), 1)

    def s_exec(self, rt):
        same("exec", self.exec(self.b, "sh", "-c", "echo in; exit 9"), (9, "in\n"))

    def s_log(self, rt):
        until("both lines", lambda: len(self.log(self.pod, "b")) == 2)
        same("the log's lines", sorted(l.split(" ", 1)[1] for l in self.log(self.pod, "b")), ["stderr F err", "stdout F out"])

    def s_limits(self, rt):
        same("memory limit", memory_limit(self.pid(self.b)), str(64 * MIB))
        self.call("UpdateContainerResources", {1: self.b, 2: {4: 48 * MIB}})
        same("memory limit after the update", memory_limit(self.pid(self.b)), str(48 * MIB))
        stats = self.call("ContainerStats", {1: self.b})
        working_set, cpu = one(stats, 1, 3, 2, 1), one(stats, 1, 2, 2, 1)
        if not working_set or not 0 < working_set < 48 * MIB or not cpu:
            raise Failed("odd numbers: memory %s, processor %s" % (working_set, cpu))

    def s_confined(self, rt):
        # Capability: drop ALL; run_as_user 1000, run_as_group 2000; read-only; no_new_privs; seccomp RuntimeDefault.
        security = {1: {2: ["ALL"]}, 5: {1: 1000}, 12: {1: 2000}, 7: True, 8: [3000], 11: True, 15: {1: 0}}
        c = self.create(self.pod, "confined", ["sleep", "1000"], security=security)
        same("ids", self.exec(c, "sh", "-c", "id -u; id -g; id -G")[1].split(), ["1000", "2000", "2000", "3000"])
        same("a write to the root", self.exec(c, "touch", "/x")[0], 1)
        seen = dict(l.split(":\t") for l in self.exec(c, "grep", "-E", "^(CapBnd|NoNewPrivs|Seccomp):", "/proc/self/status")[1].splitlines())
        same("status", seen, {"CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"})
        self.call("StopContainer", {1: c, 2: 0})
        self.call("RemoveContainer", {1: c})

    def s_volume(self, rt):
        path = self.dir + "/volume-" + rt
        os.makedirs(path, exist_ok=True)
        open(path + "/given", "w").write("given\n")
        c = self.create(self.pod, "volume", ["sleep", "1000"], env={"A": "b c"}, mounts=[{1: "/rw", 2: path}, {1: "/ro", 2: path, 3: True}])
        same("what it sees", self.exec(c, "sh", "-c", 'cat /ro/given; echo "$A"; touch /rw/made; ! touch /ro/other 2>/dev/null'), (0, "given\nb c\n"))
        if not os.path.exists(path + "/made"):
            raise Failed("its file is not here")
        self.call("StopContainer", {1: c, 2: 0})
        self.call("RemoveContainer", {1: c})

    def s_oom(self, rt):
        # On v2 containerd's own shim may be too late: systemd has removed the cgroup before it looks.
        for again in range(1 if rt == "shim" else 8, 0, -1):
            c = self.create(self.pod, "oom%d" % again, ["sh", "-c", "sleep 0.3; a=x; while :; do a=$a$a; done"], resources={4: 24 * MIB, 10: 24 * MIB})
            until("its end", lambda: self.state(c) == EXITED)
            s = self.status(c)
            self.call("RemoveContainer", {1: c})
            told = one(s, 7), (one(s, 10) or b"").decode()
            if told == (137, "OOMKilled"):
                return
        same("exit code and reason", told, (137, "OOMKilled"))

    def s_stop(self, rt):
        self.call("StopContainer", {1: self.b, 2: 10})
        same("exit code", one(self.status(self.b), 7), 4)
        c = self.create(self.pod, "deaf", ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
        time.sleep(0.3)
        began = time.monotonic()
        self.call("StopContainer", {1: c, 2: 2})
        if time.monotonic() - began < 1.8:
            raise Failed("it had no time of grace")
        same("exit code", one(self.status(c), 7), 137)
        self.call("RemoveContainer", {1: c})

    def s_again(self, rt):
        self.call("RemoveContainer", {1: self.b})
        self.b = self.create(self.pod, "b-1", ["sleep", "1000"])
        same("exec", self.exec(self.b, "echo", "again"), (0, "again\n"))
        same("the other one", self.state(self.a), RUNNING)

    def s_pids(self, rt):
        pod = self.run_pod(rt, pid=POD)
        c = self.create(pod, "c", ["sleep", "1234"], pid=POD)
        d = self.create(pod, "d", ["sleep", "1000"], pid=POD)
        until("d sees c's process", lambda: "sleep 1234" in self.exec(d, "ps")[1])
        same("states", (self.state(c), self.state(d)), (RUNNING, RUNNING))
        self.remove(pod)

    def s_remove(self, rt):
        pids = [self.pid(c) for c in (self.pod[0], self.a, self.b)]
        self.remove(self.pod)
        until("its processes are gone", lambda: not any(os.path.exists("/proc/" + p) for p in pids))

    def s_left(self, rt):
        same("tasks", ok([*self.base, "task", "ls", "-q"]).strip(), "")
        same("containers", ok([*self.base, "container", "ls", "-q"]).strip(), "")
        left = glob.glob("/sys/fs/cgroup/**/%s*/*/" % self.parent, recursive=True)
        if left:
            raise Failed("cgroups: %s" % left[:3])

    def stop(self):
        for pod in self.call("ListPodSandbox", {}).get(1, []) if hasattr(self, "channel") else []:
            sh_id = one(decode(pod), 1).decode()
            try:
                self.remove((sh_id, None))
            except Failed:
                pass
        super().stop()
