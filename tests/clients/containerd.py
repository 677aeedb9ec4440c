"""containerd, driven by ctr."""
import glob, os, shutil, subprocess, time

from common import MIB, Failed, frozen, memory_limit, ok, parent_of, same, sh, until
from engines import Client


class Ctr(Client):
    name, needs = "ctr", {"/usr/bin/ctr": "containerd", "/usr/bin/containerd": "containerd"}
    image = "docker.io/library/berthbox:1"

    def start(self):
        conf = os.path.join(self.dir, "config.toml")
        open(conf, "w").write('version = 2\nroot = "%s/data"\nstate = "/run/berth-containerd"\n'
                              'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "/run/berth-containerd.sock"\n' % self.dir)
        self.base = [*self.o.enter, "/usr/bin/ctr", "--address", "/run/berth-containerd.sock", "--namespace", self.parent]
        self.daemon([*self.o.enter, "/usr/bin/containerd", "--config", conf], self.base + ["version"], "containerd")
        ok(self.cmd("image", "import", self.o.image))

    def cmd(self, *a):
        return self.base + list(a)

    def run(self, rt, *a):
        if rt == "shim":
            return self.cmd("run", "--runtime", "io.containerd.berth.v2", *a)
        return self.cmd("run", "--runc-binary", self.o.runtimes[rt], *a)

    def put_away(self, rt, c):
        sh(self.cmd("task", "delete", "--force", c))
        sh(self.cmd("container", "rm", c))

    def version(self):
        return ok([*self.o.enter, "/usr/bin/containerd", "--version"]).split()[2]

    def pid(self, c):
        for line in ok(self.cmd("task", "ls")).splitlines()[1:]:
            f = line.split()
            if f[0] == c:
                return f[1]
        raise Failed("no task " + c)

    def status(self, c):
        for line in ok(self.cmd("task", "ls")).splitlines()[1:]:
            f = line.split()
            if f[0] == c:
                return f[2]
        return "gone"

    def steps(self):
        return [("run: output", self.s_run), ("run: exit code", self.s_exit), ("run: program not found fails", self.s_nf), ("run: terminal", self.s_tty),
                ("run: seccomp and capabilities", self.s_confined), ("run -d: limits in force", self.s_start), ("exec: output and exit code", self.s_exec),
                ("exec: user and cwd", self.s_exec_user), ("exec: terminal", self.s_exec_tty), ("exec -d", self.s_exec_d), ("ps", self.s_ps), ("metrics", self.s_metrics), ("pause", self.s_pause), ("resume", self.s_resume),
                ("kill: signal arrives", self.s_kill), ("delete of an ended task", self.s_delete), ("kill --all, delete --force", self.s_force),
                ("a pod of two", self.s_pod), ("events, in order", self.s_events), ("big output", self.s_big), ("checkpoint and restore", self.s_checkpoint), ("10 at once", self.s_many), *self.image_steps(), ("nothing left", self.s_left)]

    def s_pod(self, rt):
        """two containers with the annotation of one sandbox share a shim, and end by themselves"""
        pod, other = self.fresh(), self.fresh()
        group = ["--annotation", "io.kubernetes.cri.sandbox-id=" + pod] if rt == "shim" else ["--annotation", "io.containerd.runc.v2.group=" + pod]
        ok(self.run(rt, "-d", *group, self.image, pod, "sleep", "1000"))
        ok(self.run(rt, "-d", *group, self.image, other, "sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.05; done"))
        shims = {parent_of(self.pid(c)) for c in (pod, other)}
        same("shims", len(shims), 1)
        same("exec in the second", sh(self.ex(other, "sh", "-c", "exit 8")).returncode, 8)
        ok(self.cmd("task", "kill", "-s", "TERM", other))
        until("the end of one", lambda: self.status(other) == "STOPPED")
        same("the other one", self.status(pod), "RUNNING")
        for c in (other, pod):
            sh(self.cmd("task", "delete", "--force", c))
            ok(self.cmd("container", "rm", c))

    def s_events(self, rt):
        """of a container that has an exec and is killed for lack of memory"""
        c, file = self.fresh(), os.path.join(self.dir, "events-" + rt)
        events = subprocess.Popen(self.cmd("events"), stdin=subprocess.DEVNULL, stdout=open(file, "w"), stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.3)
            ok(self.run(rt, "-d", "--memory-limit", str(20 * MIB), self.image, c, "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; a=x; while :; do a=$a$a; done"))
            ok(self.ex(c, "touch", "/go"))
            until("the end", lambda: self.status(c) == "STOPPED")
            time.sleep(0.3)
            sh(self.cmd("task", "delete", c))
            ok(self.cmd("container", "rm", c))
            topics = lambda: [w for l in open(file) if '"%s"' % c in l for w in l.split() if w.startswith("/tasks/")]
            until("the last event", lambda: "/tasks/delete" in topics())
        finally:
            events.kill()
            events.wait()
        seen = [t for t in topics() if t != "/tasks/oom"]
        same("events", seen, ["/tasks/" + t for t in ("create", "start", "exec-added", "exec-started", "exit", "exit", "delete")])
        if "/tasks/oom" not in topics():
            raise Failed("lack of memory was not told: %s" % topics())

    def s_big(self, rt):
        out = ok(self.run(rt, "--rm", self.image, self.fresh(), "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"))
        same("lines", out, "".join("line %d\n" % i for i in range(20000)))

    def s_checkpoint(self, rt):
        if not shutil.which("criu"):
            self.absent("criu is not installed")
        c = self.fresh()
        ok(self.run(rt, "-d", self.image, c, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.1; done"))
        # The file is empty for a moment each time.
        count = lambda c: int(ok(self.ex(c, "cat", "/count")) or 0)
        until("it counts", lambda: count(c) > 1)
        ok(self.cmd("container", "checkpoint", "--rw", "--task", c, "checkpoint-" + c))
        same("it goes on", self.status(c), "RUNNING")
        sh(self.cmd("task", "delete", "--force", c))
        ok(self.cmd("container", "rm", c))
        woken = self.fresh()
        restored = subprocess.Popen(self.cmd("container", "restore", "--rw", "--live", woken, "checkpoint-" + c), stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            until("the restored one runs", lambda: self.status(woken) == "RUNNING" or restored.poll() is not None)
            if restored.poll():
                raise Failed("restore: status %d: %s" % (restored.returncode, restored.stderr.read().decode()[-400:]))
            until("it knows its count", lambda: count(woken) > 1)
            before = count(woken)
            until("it counts on", lambda: count(woken) > max(before, 1))
        finally:
            sh(self.cmd("task", "delete", "--force", woken))
            restored.kill()
            restored.wait()
            sh(self.cmd("container", "rm", woken))
        ok(self.cmd("image", "rm", "checkpoint-" + c))

    def s_run(self, rt):
        same("output", ok(self.run(rt, "--rm", self.image, self.fresh(), "echo", "hello")), "hello\n")

    def s_exit(self, rt):
        same("status", sh(self.run(rt, "--rm", self.image, self.fresh(), "sh", "-c", "exit 42")).returncode, 42)

    def s_nf(self, rt):
        c = self.fresh()
        p = sh(self.run(rt, "--rm", self.image, c, "no-such-program"))
        sh(self.cmd("container", "rm", c))  # which `ctr run --rm` leaves when the start fails
        if p.returncode == 0 or "no-such-program" not in p.stderr:
            raise Failed("status %d: %s" % (p.returncode, p.stderr))

    def s_tty(self, rt):
        # ctr wants a terminal of its own for -t; `script` gives it one.
        argv = self.run(rt, "--rm", "-t", self.image, self.fresh(), "sh", "-c", "'test -t 0 && tty'")
        out = ok(["script", "-qec", " ".join(argv), "/dev/null"])
        if "/dev/pts/0" not in out:
            raise Failed("no terminal: %r" % out)

    def s_confined(self, rt):
        out = ok(self.run(rt, "--rm", "--seccomp", self.image, self.fresh(), "grep", "-E", "^(CapEff|NoNewPrivs|Seccomp):", "/proc/self/status"))
        same("status file", out.split(), ["CapEff:", "00000000a80425fb", "NoNewPrivs:", "1", "Seccomp:", "2"])

    def s_start(self, rt):
        self.c = self.fresh()
        ok(self.run(rt, "-d", "--memory-limit", str(64 * MIB), self.image, self.c, "sh", "-c",
                    "trap 'exit 3' TERM; trap 'touch /signal' USR1; while :; do sleep 0.1; done"))
        same("memory limit", memory_limit(self.pid(self.c)), str(64 * MIB))
        same("status", self.status(self.c), "RUNNING")

    def ex(self, *a):
        self.n += 1
        return self.cmd("task", "exec", "--exec-id", "e%d" % self.n, *a)

    def s_exec(self, rt):
        same("output", ok(self.ex(self.c, "echo", "in")), "in\n")
        same("status", sh(self.ex(self.c, "sh", "-c", "exit 9")).returncode, 9)

    def s_exec_user(self, rt):
        same("output", ok(self.ex("--user", "1000", "--cwd", "/etc", self.c, "sh", "-c", "id -u; pwd")), "1000\n/etc\n")

    def s_exec_tty(self, rt):
        out = ok(["script", "-qec", " ".join(self.ex("-t", self.c, "sh", "-c", "'test -t 1 && tty'")), "/dev/null"])
        if "/dev/pts/" not in out:
            raise Failed("no terminal: %r" % out)

    def s_exec_d(self, rt):
        ok(self.ex("-d", self.c, "touch", "/detached"))
        until("the file", lambda: sh(self.ex(self.c, "test", "-e", "/detached")).returncode == 0)

    def s_ps(self, rt):
        if self.pid(self.c) not in ok(self.cmd("task", "ps", self.c)).split():
            raise Failed("its pid is not listed")

    def s_metrics(self, rt):
        out = ok(self.cmd("task", "metrics", self.c))
        if "memory.usage" not in out and "memory.usage_in_bytes" not in out:
            raise Failed("no memory use in: " + out)

    def s_pause(self, rt):
        ok(self.cmd("task", "pause", self.c))
        same("status", self.status(self.c), "PAUSED")
        if not frozen(self.pid(self.c)):
            raise Failed("its cgroup is not frozen")

    def s_resume(self, rt):
        ok(self.cmd("task", "resume", self.c))
        same("status", self.status(self.c), "RUNNING")

    def s_kill(self, rt):
        ok(self.cmd("task", "kill", "-s", "USR1", self.c))
        until("the file", lambda: sh(self.ex(self.c, "test", "-e", "/signal")).returncode == 0)
        ok(self.cmd("task", "kill", "-s", "TERM", self.c))
        until("the end", lambda: self.status(self.c) == "STOPPED")

    def s_delete(self, rt):
        sh(self.cmd("task", "delete", self.c))  # ends with the task's status, or 0, depending on its version
        same("status", self.status(self.c), "gone")
        ok(self.cmd("container", "rm", self.c))

    def s_force(self, rt):
        c = self.fresh()
        ok(self.run(rt, "-d", self.image, c, "sh", "-c", "sleep 1000 & sleep 1000"))
        ok(self.cmd("task", "kill", "--all", "-s", "KILL", c))
        until("the end", lambda: self.status(c) == "STOPPED")
        sh(self.cmd("task", "delete", "--force", c))
        ok(self.cmd("container", "rm", c))

    def short_lived(self, rt, c, *words):
        return self.run(rt, "--rm", self.image, c, *words)

    def image_digest(self, name):
        return next(l.split()[2] for l in ok(self.cmd("image", "ls")).splitlines() if l.startswith(name + " "))

    def s_image_in(self, rt):
        file, name = os.path.join(self.dir, rt + "-in.tar"), "docker.io/library/exchange-%s:1" % rt
        for how in ("oci-archive", "docker-archive"):
            if rt == "ours":
                self.builder("load", "-i", self.o.image)
                self.builder("tag", self.image, name)
                self.builder("save", "--format", how, "-o", file, name)
            else:
                ok(self.cmd("image", "tag", "--force", self.image, name))
                ok(self.cmd("image", "export", file, name))
                ok(self.cmd("image", "rm", name))
            ok(self.cmd("image", "import", "--base-name", name.rsplit(":", 1)[0], file))
            same("output", ok(self.run(rt, "--rm", name, self.fresh(), "echo", "loaded")), "loaded\n")
            if rt == "ours" and how == "oci-archive":
                # Docker's image has become an OCI one on its way.
                self.builder("load", "-i", file)
                same("digest", self.image_digest(name), self.builder("inspect", "-f", "{{.Digest}}", name).strip())
            ok(self.cmd("image", "rm", "--sync", name))
            os.unlink(file)

    def s_image_out(self, rt):
        file = os.path.join(self.dir, rt + "-out.tar")
        ok(self.cmd("image", "export", file, self.image))
        if rt == "ours":
            shutil.rmtree(self.dir + "/store", ignore_errors=True)
            self.builder("load", "-i", file)
            same("digest", self.builder("inspect", "-f", "{{.Digest}}", self.image).strip(), self.image_digest(self.image))
            same("check", sh([self.o.builder, "--root", self.dir + "/store", "check"]).returncode, 0)
        os.unlink(file)

    def s_left(self, rt):
        same("tasks", ok(self.cmd("task", "ls", "-q")).strip(), "")
        same("containers", ok(self.cmd("container", "ls", "-q")).strip(), "")
        left = glob.glob("/sys/fs/cgroup/**/%s/*/" % self.parent, recursive=True)
        if left:
            raise Failed("cgroups: %s" % left[:3])
