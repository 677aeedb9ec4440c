"""What every suite speaks that drives programs from outside: commands that end, probes of cgroups, an image without a registry,
namespaces to work in and the way out of them."""
import atexit, fcntl, glob, hashlib, io, json, os, pty, select, shutil, signal, socket, struct, subprocess, sys, tarfile, termios, time, urllib.request

MIB = 1 << 20


class Failed(Exception):
    pass


class Absent(Exception):
    """what a step needs is not on this host"""


def sh(argv, timeout=60, **kw):
    """the finished process, with its output as text; no step may hang the run"""
    try:
        given = {"input": kw.pop("input").encode()} if "input" in kw else {"stdin": subprocess.DEVNULL}
        p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, **given, **kw)
    except subprocess.TimeoutExpired as e:
        raise Failed("no end after %d s: %s" % (timeout, " ".join(argv))) from e
    # Not subprocess's own text mode: it hides the carriage returns of a terminal.
    p.stdout, p.stderr = p.stdout.decode(errors="replace"), p.stderr.decode(errors="replace")
    return p


def ok(argv, **kw):
    p = sh(argv, **kw)
    if p.returncode:
        raise Failed("status %d: %s: %s" % (p.returncode, " ".join(argv[:6]), (p.stderr or p.stdout).strip()[-700:]))
    return p.stdout


def same(what, got, want):
    if got != want:
        raise Failed("%s: got %r, wanted %r" % (what, got, want))


def until(what, probe, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if probe():
            return
        time.sleep(0.05)
    raise Failed("not within %d s: %s" % (seconds, what))


def fetched(port, path="/"):
    """what a server on loopback answers, or nothing"""
    try:
        with urllib.request.urlopen("http://127.0.0.1:%d%s" % (port, path), timeout=5) as r:
            return r.read().decode()
    except OSError:
        return ""


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def cgroup_file(pid, controller, v1, v2):
    """the text of a limit file of the cgroup that a process is in"""
    for line in open("/proc/%s/cgroup" % pid):
        _, names, path = line.strip().split(":", 2)
        if controller in names.split(","):
            return open("/sys/fs/cgroup/%s%s/%s" % (controller, path, v1)).read().strip()
    for line in open("/proc/%s/cgroup" % pid):
        if line.startswith("0::"):
            return open("/sys/fs/cgroup%s/%s" % (line.strip()[3:], v2)).read().strip()
    raise Failed("process %s is in no %s cgroup" % (pid, controller))


def parent_of(pid):
    return open("/proc/%s/stat" % pid).read().rsplit(")", 1)[1].split()[1]


def memory_limit(pid):
    return cgroup_file(pid, "memory", "memory.limit_in_bytes", "memory.max")


def pids_limit(pid):
    return cgroup_file(pid, "pids", "pids.max", "pids.max")


def frozen(pid):
    try:
        return cgroup_file(pid, "freezer", "freezer.state", "cgroup.freeze") in ("FROZEN", "1")
    except FileNotFoundError:
        raise Failed("no freezer file for process %s" % pid)


# ---------------------------------------------------------------- an image, without a registry

def image_archive(path, name="docker.io/library/berthbox:1", command=("sh",)):
    """a docker archive with one layer: a static busybox"""
    busybox = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin") or sys.exit("clients: no busybox; apt-get install busybox-static")
    names = ok([busybox, "--list"]).split()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as t:
        def entry(name, kind, mode, data=b"", link=""):
            i = tarfile.TarInfo(name)
            i.type, i.mode, i.size, i.linkname = kind, mode, len(data), link
            t.addfile(i, io.BytesIO(data))
        for d in "bin dev etc proc root sys tmp".split():
            entry(d, tarfile.DIRTYPE, 0o1777 if d == "tmp" else 0o755)
        entry("bin/busybox", tarfile.REGTYPE, 0o755, open(busybox, "rb").read())
        for n in names:
            if n != "busybox":
                entry("bin/" + n, tarfile.SYMTYPE, 0o777, link="busybox")
        entry("etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n")
        entry("etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")
    layer = layer.getvalue()
    config = json.dumps({
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": list(command)}, "history": [{"created_by": "tests/clients"}],
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as t:
        for name, data in (("layer.tar", layer), ("config.json", config), ("manifest.json", manifest)):
            i = tarfile.TarInfo(name)
            i.size = len(data)
            t.addfile(i, io.BytesIO(data))


# ---------------------------------------------------------------- a place to work in, and the way out

def in_namespaces(script_path=None):
    """mount, pid and network namespaces of our own, with an empty /run, so that nothing of this host is touched"""
    if os.environ.get("BERTH_CLIENTS_INSIDE"):
        return
    os.environ["BERTH_CLIENTS_INSIDE"] = "1"
    script = "ip link set lo up; mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock; \"$@\"; exit $?"  # the shell is the first process: it reaps orphans
    os.execvp("unshare", ["unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh",
                          sys.executable, script_path or os.path.abspath(sys.argv[0]), *sys.argv[1:]])


def other_root(root, dir, runtimes):
    """an overlay over another tree, with this machine's /proc, /sys, /dev and our folder in it: the words to enter it"""
    m = os.path.join(dir, "root")
    for d in ("upper", "work", "root"):
        os.makedirs(os.path.join(dir, d))
    ok(["mount", "-t", "overlay", "-o", "lowerdir=%s,upperdir=%s/upper,workdir=%s/work" % (root, dir, dir), "overlay", m])
    for path in ("/proc", "/sys", "/dev", "/run", dir):
        os.makedirs(m + path, exist_ok=True)
        # Not recursive for our own folder: the overlay itself lies in it.
        ok(["mount", "--bind" if path == dir else "--rbind", path, m + path])
    for n, p in runtimes.items():
        copy = os.path.join(dir, "runtime-" + n)
        shutil.copy(p, copy)
        runtimes[n] = copy
    # A mount namespace whose root it is: a chroot would not do, joining a namespace leaves it.
    script = 'cd "$0" && mkdir -p .old && pivot_root . .old && umount -l /.old && echo ready && exec sleep infinity'
    holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, m], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, cwd="/")
    if holder.stdout.readline() != b"ready\n":
        raise Failed("cannot enter %s" % root)
    return ["nsenter", "--target", str(holder.pid), "--mount", "--"]


def start_registry(dir, port=5000, users=""):
    """Debian's registry on loopback, for all or for those in a text as htpasswd(1) makes it; it goes with our pid namespace"""
    base = os.path.join(dir, "registry-%d" % port)
    open(base + ".yml", "w").write("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\n"
                                   "http: {addr: 127.0.0.1:%d}\n" % (base, port))
    if users:
        open(base + ".users", "w").write(users)
        open(base + ".yml", "a").write("auth: {htpasswd: {realm: berth, path: %s.users}}\n" % base)
    log = open(base + ".log", "w")
    p = subprocess.Popen(["/usr/bin/docker-registry", "serve", base + ".yml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    atexit.register(p.kill)
    until("the registry", lambda: listens(port))
    return "127.0.0.1:%d" % port


def end_all_here():
    """whatever a failed step left running; we are in a pid namespace of our own, so it can only be ours"""
    if not os.environ.get("BERTH_CLIENTS_INSIDE"):
        return
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


class Terminal:
    """a command on a terminal of its own, as at a person's"""

    def __init__(self, argv, rows, columns):
        self.master, slave = pty.openpty()
        self.text = ""
        self.resize(rows, columns)

        def lead():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, preexec_fn=lead)
        os.close(slave)

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text.encode())

    def until(self, wanted, seconds=30):
        end = time.monotonic() + seconds
        while wanted not in self.text:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            try:
                data = os.read(self.master, 4096) if ready else b""
            except OSError:  # the last other end was closed
                data = b""
            if not data:
                raise Failed("not seen on the terminal: %r; there was %r" % (wanted, self.text[-400:]))
            self.text += data.decode(errors="replace")

    def wait(self, seconds=30):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as e:
            self.process.kill()
            raise Failed("no end after %d s; on the terminal: %r" % (seconds, self.text[-400:])) from e
        finally:
            os.close(self.master)


def remove_cgroups(tag):
    remove_cgroups_named("berth-clients-%d*" % tag)


def remove_cgroups_named(pattern):
    for top in glob.glob("/sys/fs/cgroup/**/" + pattern, recursive=True):
        for d, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(d)
            except OSError as e:
                print("clients: warning: %s stays: %s" % (d, e.strerror), file=sys.stderr)


def skipped(what, why):
    print("SKIP %s: %s" % (what, why))
    log = os.environ.get("BERTH_SKIPS")
    if log:
        with open(log, "a") as f:
            f.write("SKIP %s: %s\n" % (what, why))
