"""Docker and podman: what people do with them every day, step by step."""
import glob, json, os, shutil, signal, socket, subprocess, time

from common import MIB, Absent, Failed, Terminal, fetched, frozen, memory_limit, ok, pids_limit, same, sh, until


class Client:
    columns = None  # all, or these
    no_network = ""  # why containers have none but loopback

    def __init__(self, o, dir):
        self.o, self.dir, self.daemons, self.n, self.seen = o, os.path.join(dir, self.name), [], 0, {}
        self.cannot = {}  # columns that this client does not have, and why
        os.makedirs(self.dir)
        # With dashes it would be three slices for systemd, one in the other.
        self.parent = ("berth-clients-%d-%s" % (o.tag, self.name)).replace("-", "-" if o.cgroup_driver == "cgroupfs" else "_")

    def daemon(self, argv, ready, what):
        log = open(os.path.join(self.dir, what + ".log"), "w")
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir)
        self.daemons.append(p)
        end = time.monotonic() + 60
        while sh(ready).returncode:
            if p.poll() is not None or time.monotonic() > end:
                raise Failed("%s does not start: %s" % (what, open(log.name).read()[-1500:]))
            time.sleep(0.1)

    def cgroup_parent(self):
        return "/" + self.parent if self.o.cgroup_driver == "cgroupfs" else self.parent + ".slice"

    def stop(self):
        for p in reversed(self.daemons):
            p.terminate()
            try:
                p.wait(20)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()

    def absent(self, why):
        """a step that cannot be done here at all"""
        raise Absent(why)

    def registry_steps(self):
        return [("registry: push, pull, and with the builder", self.s_registry)] if self.o.registry else []

    def put_away(self, rt, c):
        pass

    def s_many(self, rt):
        ids = [self.fresh() for _ in range(10)]
        procs = [subprocess.Popen(self.short_lived(rt, c, "echo", c), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in ids]
        bad = []
        for c, p in zip(ids, procs):
            out, err = p.communicate(timeout=120)
            if p.returncode or out != c + "\n":
                bad.append("%s: status %d: %s" % (c, p.returncode, err.strip()[-200:]))
        if bad:
            raise Failed("%d of 10: %s" % (len(bad), bad[0]))

    def fresh(self):
        self.n += 1
        return "c%d" % self.n

    def builder(self, *a):
        """the builder, on a store of this client's"""
        return ok([self.o.builder, "--root", self.dir + "/store", *a])

    def image_steps(self):
        return [("image: it loads what the builder saves", self.s_image_in), ("image: the builder loads what it saves", self.s_image_out)]


class DockerLike(Client):
    """docker and podman: the same verbs"""
    image = "docker.io/library/berthbox:1"
    remove = ["rm", "-f"]

    def cmd(self, *a):
        return self.base + list(a)

    def put_away(self, rt, c):
        sh(self.cmd(*self.pre(rt), *self.remove, c))

    def run(self, rt, *a):
        return self.cmd(*self.pre(rt), "run", *self.opt(rt), *a)

    def short_lived(self, rt, c, *words):
        return self.run(rt, "--rm", "--name", c, self.image, *words)

    def inspect(self, c, field):
        return ok(self.cmd("inspect", "--format", "{{%s}}" % field, c)).strip()

    def pid(self, c):
        return self.inspect(c, ".State.Pid")

    def steps(self):
        init = [("run: our first process", self.s_init)] if self.o.init else []
        return [("run: output", self.s_run), ("run: exit code", self.s_exit), *init, ("run: program not found is 127", self.s_127),
                ("run: not executable is 126", self.s_126), ("run: terminal", self.s_tty), ("run: user, groups, cwd, env", self.s_user),
                ("run: read-only root, tmpfs, volumes", self.s_mounts), ("run: what the host mounts in a slave volume", self.s_rslave),
                ("run: seccomp and capabilities", self.s_confined), ("run: statuses 0, 1 and of a refusal", self.s_statuses), ("run: dns, hosts, hostname", self.s_names),
                ("run: ulimits", self.s_ulimits), ("run: terminal that changes its size", self.s_resize),
                ("run -d: limits in force", self.s_start), ("exec: output and exit code", self.s_exec), ("exec: user and env", self.s_exec_user),
                ("exec: terminal", self.s_exec_tty), ("exec: program not found: as with runc", self.s_exec_127), ("top", self.s_top), ("stats", self.s_stats), ("pause", self.s_pause),
                ("unpause", self.s_unpause), ("update: limit in force", self.s_update), ("update: limit holds", self.s_oom),
                ("lack of memory is reported", self.s_oom_killed), ("kill: signal arrives", self.s_kill), ("stop", self.s_stop), ("stop: 143; after the grace time 137", self.s_grace), ("start again", self.s_restart), ("rm -f of a running one", self.s_rm),
                ("logs", self.s_logs), ("input", self.s_input), ("attach", self.s_attach), ("restart on failure", self.s_again), ("restart: always, until it is stopped; no", self.s_policies), ("health", self.s_health), ("two share a pid and network namespace", self.s_share), ("two on one network", self.s_network), ("a published port", self.s_port), ("create, start, rm", self.s_create), ("10 at once", self.s_many),
                ("checkpoint and restore", self.s_checkpoint), ("build: RUN by the runtime", self.s_build), *self.image_steps(), *self.registry_steps(), ("nothing left", self.s_left)]

    def s_run(self, rt):
        same("output", ok(self.run(rt, "--rm", self.image, "echo", "hello")), "hello\n")

    def s_exit(self, rt):
        same("status", sh(self.run(rt, "--rm", self.image, "sh", "-c", "exit 42")).returncode, 42)
        same("a signal", sh(self.run(rt, "--rm", self.image, "sh", "-c", "sleep 9 & kill -9 $!; wait $!")).returncode, 137)

    def s_init(self, rt):
        script = '"$(readlink /proc/1/exe)" --version; (sleep 0.1 &); sleep 0.4; grep -l "State:.Z" /proc/[0-9]*/status 2>/dev/null | wc -l'
        out = ok(self.run(rt, "--rm", *self.with_init(), self.image, "sh", "-c", script)).split()
        same("the program, and zombies", (out[0], out[-1]), ("berth-init", "0"))
        same("status", sh(self.run(rt, "--rm", *self.with_init(), self.image, "sh", "-c", "kill -TERM $$")).returncode, 143)

    def with_init(self):
        return ["--init"]

    def s_statuses(self, rt):
        same("of true", sh(self.run(rt, "--rm", self.image, "true")).returncode, 0)
        same("of false", sh(self.run(rt, "--rm", self.image, "false")).returncode, 1)
        same("of a flag that is none", sh(self.run(rt, "--rm", "--no-such-flag", self.image, "true")).returncode, 125)
        # The engine takes it, the runtime cannot: which number that is, is the engine's affair, and the same for all.
        p = sh(self.run(rt, "--rm", "--sysctl", "net.ipv4.no_such_thing=1", self.image, "true"))
        if p.returncode not in (125, 126, 127):
            raise Failed("a sysctl that does not exist: status %d: %s" % (p.returncode, p.stderr))
        same("of a refusal", p.returncode, self.seen.setdefault("refusal", p.returncode))

    def s_names(self, rt):
        # Podman writes no such files without a network.
        if self.no_network and self.name == "podman":
            self.absent("containers have no network here: " + self.no_network)
        network = "none" if self.name == "docker" else self.bridge
        out = ok(self.on(rt, network, "--rm", "--dns", "10.9.8.7", "--add-host", "a.example:10.1.2.3", "--hostname", "name", self.image,
                          "sh", "-c", "hostname; cat /etc/resolv.conf /etc/hosts"))
        for words in (["name"], ["nameserver", "10.9.8.7"], ["10.1.2.3", "a.example"]):
            if words not in [l.split() for l in out.splitlines()]:
                raise Failed("no line %s in %r" % (words, out))

    def s_ulimits(self, rt):
        out = ok(self.run(rt, "--rm", "--ulimit", "nofile=321:654", "--ulimit", "core=0", "--ulimit", "nproc=500", self.image, "sh", "-c", "ulimit -n; ulimit -H -n; ulimit -c"))
        same("limits", out.split(), ["321", "654", "0"])

    def s_rslave(self, rt):
        if self.o.rootless:
            self.absent("an ordinary user mounts nothing")
        c, top = self.fresh(), os.path.join(self.dir, "slave-" + rt)
        here = self.o.enter
        os.makedirs(top + "/in", exist_ok=True)
        ok([*here, "mount", "--bind", top, top])
        try:
            ok([*here, "mount", "--make-shared", top])
            ok(self.run(rt, "-d", "--name", c, "-v", top + ":/v:rslave", self.image, "sleep", "1000"))
            ok([*here, "mount", "-t", "tmpfs", "tmpfs", top + "/in"])
            ok([*here, "touch", top + "/in/there"])
            ok(self.cmd(*self.pre(rt), "exec", c, "test", "-e", "/v/in/there"))
            ok([*here, "umount", top + "/in"])
            same("gone as well", sh(self.cmd(*self.pre(rt), "exec", c, "test", "-e", "/v/in/there")).returncode, 1)
            ok(self.cmd(*self.pre(rt), *self.remove, c))
        finally:
            sh([*here, "umount", "-R", "-l", top])

    def s_resize(self, rt):
        t = Terminal(self.run(rt, "--rm", "-i", "-t", self.image, "sh", "-c", "trap 'stty size' WINCH; echo ready; until read -t 1 x && [ \"$x\" = end ]; do :; done; stty size"), 30, 100)
        t.until("ready")
        # The engine asks for the size when the container already runs, and tells it later.
        time.sleep(0.5)
        t.resize(44, 132)
        t.until("44 132")
        t.type("end\r")
        same("status", t.wait(), 0)

    def s_oom_killed(self, rt):
        # Podman's own conmon sometimes misses it (with runc as well): systemd has removed the group, or the end came first.
        for left in range(3 if self.name == "podman" and rt != "shim" else 1, 0, -1):
            try:
                return self.killed_for_memory(rt)
            except Failed:
                if left == 1:
                    raise

    def killed_for_memory(self, rt):
        c = self.fresh()
        ok(self.run(rt, "-d", "--name", c, "--memory", "24m", "--memory-swap", "24m", self.image, "sh", "-c", "a=x; while :; do a=$a$a; done"))
        ok(self.cmd(*self.pre(rt), "wait", c))
        seen = self.inspect(c, ".State.ExitCode"), self.inspect(c, ".State.OOMKilled")
        ok(self.cmd(*self.pre(rt), *self.remove, c))
        same("exit code and reason", seen, ("137", "true"))

    def s_grace(self, rt):
        c, d = self.fresh(), self.fresh()
        init = self.with_init() if self.o.init else []
        ok(self.run(rt, "-d", "--name", c, *init, self.image, "sh", "-c", "while :; do sleep 0.1; done"))
        if init:
            ok(self.cmd(*self.pre(rt), "stop", "-t", "10", c))
            same("of SIGTERM", self.inspect(c, ".State.ExitCode"), "143")
        ok(self.run(rt, "-d", "--name", d, self.image, "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"))
        until("its trap", lambda: "deaf" in sh(self.cmd("logs", d)).stdout)
        began = time.monotonic()
        ok(self.cmd(*self.pre(rt), "stop", "-t", "2", d))
        if time.monotonic() - began < 1.8:
            raise Failed("it had no time of grace")
        same("of SIGKILL", self.inspect(d, ".State.ExitCode"), "137")
        ok(self.cmd(*self.pre(rt), *self.remove, c, d))

    def s_policies(self, rt):
        c, d = self.fresh(), self.fresh()
        ok(self.run(rt, "-d", "--name", c, "--restart", "always", self.image, "sh", "-c", "echo run; sleep 0.2"))
        until("three runs", lambda: sh(self.cmd("logs", c)).stdout.count("run") >= 3)
        ok(self.cmd(*self.pre(rt), "stop", "-t", "1", c))
        runs = sh(self.cmd("logs", c)).stdout
        ok(self.run(rt, "-d", "--name", d, "--restart", "no", self.image, "sh", "-c", "exit 1"))
        ok(self.cmd(*self.pre(rt), "wait", d))
        time.sleep(1)
        same("runs after the stop", sh(self.cmd("logs", c)).stdout, runs)
        same("of the one with no policy", (self.inspect(d, ".State.Running"), self.inspect(d, ".RestartCount")), ("false", "0"))
        ok(self.cmd(*self.pre(rt), *self.remove, c, d))

    def on(self, rt, network, *a):
        """run, on another network than none"""
        return [w if w != "--network=none" else "--network=" + network for w in self.run(rt, *a)]

    def s_network(self, rt):
        if self.no_network:
            self.absent("containers have no network here: " + self.no_network)
        c, n = self.fresh(), "net-%d" % self.n
        ok(self.cmd("network", "create", "--subnet", "10.201.0.0/24", n))
        try:
            ok(self.on(rt, n, "-d", "--name", c, self.image, "sh", "-c", "echo served >/tmp/index.html; exec httpd -f -p 80 -h /tmp"))
            address = ok(self.cmd("inspect", "--format", '{{(index .NetworkSettings.Networks "%s").IPAddress}}' % n, c)).strip()
            fetch = lambda host: sh(self.on(rt, n, "--rm", self.image, "sh", "-c", "timeout 5 wget -q -O- http://%s/; exit $?" % host)).stdout
            until("an answer by address", lambda: fetch(address) == "served\n")
            if self.names_hosts:
                same("by name", fetch(c), "served\n")
        finally:
            sh(self.cmd(*self.pre(rt), *self.remove, c))
            sh(self.cmd("network", "rm", n))

    def s_port(self, rt):
        if self.no_network:
            self.absent("containers have no network here: " + self.no_network)
        c = self.fresh()
        port = 18000 + self.n
        ok(self.on(rt, self.bridge, "-d", "--name", c, "-p", "127.0.0.1:%d:80" % port, self.image, "sh", "-c", "echo $HOSTNAME served >/tmp/index.html; exec httpd -f -p 80 -h /tmp"))
        until("an answer", lambda: "served" in fetched(port))
        ok(self.cmd(*self.pre(rt), *self.remove, c))
        same("afterwards", fetched(port), "")

    def s_checkpoint(self, rt):
        if self.o.rootless:
            self.absent("podman checkpoints for root alone")
        if not shutil.which("criu"):
            self.absent("criu is not installed")
        c = self.fresh()
        ok(self.run(rt, "-d", "--name", c, self.image, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.05; done"))
        count = lambda: int(ok(self.cmd(*self.pre(rt), "exec", c, "cat", "/count")) or 0)
        until("it counts", lambda: count() > 3)
        before = count()
        self.checkpoint(rt, c)
        until("it is stopped", lambda: self.inspect(c, ".State.Running") == "false")
        self.restore(rt, c)
        until("it goes on counting", lambda: count() > before)
        if count() > before + 1000:
            raise Failed("it has counted from %d to %d" % (before, count()))
        ok(self.cmd(*self.pre(rt), *self.remove, c))

    def s_build(self, rt):
        dir, name = os.path.join(self.dir, "build-" + rt), "built-%s:1" % rt
        os.makedirs(dir, exist_ok=True)
        open(dir + "/Dockerfile", "w").write("FROM %s\nCOPY given /given\nRUN cat /given >/made && echo more >>/made && test \"$(id -u)\" = 0\nUSER user\nCMD [\"cat\", \"/made\"]\n" % self.image)
        open(dir + "/given", "w").write("given\n")
        log = self.build(rt, dir, name)
        if " create " not in open(log).read() and " run " not in open(log).read():
            raise Failed("the runtime was not asked to run anything")
        same("output", ok(self.run(rt, "--rm", name)), "given\nmore\n")
        ok(self.cmd("rmi", name))

    def logged(self, rt):
        """a program that notes what the runtime is asked, and lets it do that"""
        path = os.path.join(self.dir, "logged-" + rt)
        open(path, "w").write("#!/bin/sh\necho \" $* \" >>%s\nexec %s \"$@\"\n" % (self.log_of(rt), self.o.runtimes[rt]))
        os.chmod(path, 0o755)
        return path

    def log_of(self, rt):
        return os.path.join(self.dir, "asked-%s.log" % rt)

    def s_registry(self, rt):
        name = "%s/by-client-%s:1" % (self.o.registry, rt)
        ok(self.cmd("tag", self.image, name))
        ok(self.cmd("push", *self.plain_http(), name))
        id = self.image_id(name)
        ok(self.cmd("rmi", name))
        ok(self.cmd("pull", *self.plain_http(), name))
        same("id", self.image_id(name), id)
        same("output", ok(self.run(rt, "--rm", name, "echo", "pulled")), "pulled\n")
        if rt != "runc":
            shutil.rmtree(self.dir + "/store", ignore_errors=True)
            self.builder("pull", "--tls-verify=false", name)
            same("the builder's id", self.builder("inspect", "-f", "{{.Id}}", name).strip(), "sha256:" + id)
            other = "%s/by-builder-%s:1" % (self.o.registry, rt)
            self.builder("tag", name, other)
            self.builder("push", "--tls-verify=false", other)
            ok(self.cmd("pull", *self.plain_http(), other))
            same("output", ok(self.run(rt, "--rm", other, "echo", "pulled")), "pulled\n")
            ok(self.cmd("rmi", other))
        ok(self.cmd("rmi", name))

    def s_127(self, rt):
        same("status", sh(self.run(rt, "--rm", self.image, "no-such-program")).returncode, 127)

    def s_126(self, rt):
        same("status", sh(self.run(rt, "--rm", self.image, "/etc/passwd")).returncode, 126)

    def s_tty(self, rt):
        same("output", ok(self.run(rt, "--rm", "-t", self.image, "sh", "-c", "test -t 0 && test -t 1 && tty")), "/dev/pts/0\r\n")

    def s_user(self, rt):
        out = ok(self.run(rt, "--rm", "-u", "user", "-w", "/tmp", "-e", "A=b c", "--hostname", "name", self.image, "sh", "-c",
                          'echo "$(id -u) $(id -g) $(id -G) $PWD $A $(hostname) $HOME"'))
        same("output", out, "1000 1000 1000 2000 /tmp b c name /tmp\n")

    def s_mounts(self, rt):
        vol = os.path.join(self.dir, "vol-" + os.path.basename(self.o.runtimes[rt]))
        os.makedirs(vol, exist_ok=True)
        out = ok(self.run(rt, "--rm", "--read-only", "--tmpfs", "/scratch:size=1m", "-v", vol + ":/v", "-v", vol + ":/r:ro", self.image,
                          "sh", "-c", "echo x >/v/f && echo y >/scratch/f && ! touch /f 2>/dev/null && ! touch /r/g 2>/dev/null && cat /r/f"))
        same("output", out, "x\n")

    def s_confined(self, rt):
        out = ok(self.run(rt, "--rm", "--cap-drop", "all", "--cap-add", "chown", "--security-opt", "no-new-privileges", self.image,
                          "grep", "-E", "^(CapEff|NoNewPrivs|Seccomp):", "/proc/self/status"))
        same("status file", out.split(), ["CapEff:", "0000000000000001", "NoNewPrivs:", "1", "Seccomp:", "2"])

    def s_start(self, rt):
        self.c = self.fresh()
        ok(self.run(rt, "-d", "--name", self.c, "--memory", "64m", "--pids-limit", "40", self.image, "sh", "-c",
                    "trap 'echo got hup' HUP; trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done"))
        pid = self.pid(self.c)
        same("memory limit", memory_limit(pid), str(64 * MIB))
        same("pids limit", pids_limit(pid), "40")

    def s_exec(self, rt):
        same("output", ok(self.cmd(*self.pre(rt), "exec", self.c, "echo", "in")), "in\n")
        same("status", sh(self.cmd(*self.pre(rt), "exec", self.c, "sh", "-c", "exit 9")).returncode, 9)

    def s_exec_user(self, rt):
        same("output", ok(self.cmd(*self.pre(rt), "exec", "-u", "1000:1000", "-e", "Q=1", "-w", "/etc", self.c, "sh", "-c", "echo $(id -u) $Q $PWD")),
             "1000 1 /etc\n")

    def s_exec_tty(self, rt):
        same("output", ok(self.cmd(*self.pre(rt), "exec", "-t", self.c, "sh", "-c", "test -t 1 && echo tty")), "tty\r\n")

    def s_exec_127(self, rt):
        # Docker 20.10 says 126, later ones 127; what counts is that the caller sees no difference.
        status = sh(self.cmd(*self.pre(rt), "exec", self.c, "no-such-program")).returncode
        if status not in (126, 127):
            raise Failed("status %d" % status)
        same("status", status, self.seen.setdefault("exec not found", status))

    def s_top(self, rt):
        # Podman's fails when one of the processes ends while it looks; here one ends ten times a second.
        for _ in range(5):
            p = sh(self.cmd(*self.pre(rt), "top", self.c))
            if p.returncode == 0 or "no such process" not in p.stderr:
                break
        if p.returncode:
            raise Failed("status %d: %s" % (p.returncode, p.stderr))
        out = p.stdout
        if "sleep" not in out and "trap" not in out:
            raise Failed("no process of the container in: " + out)

    def s_stats(self, rt):
        out = ok(self.cmd(*self.pre(rt), "stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", self.c)).split()
        if not (out[-1].isdigit() and int(out[-1]) >= 1 and out[0][0].isdigit() and not out[0].startswith("0B")):
            raise Failed("odd numbers: %r" % out)

    def s_pause(self, rt):
        ok(self.cmd(*self.pre(rt), "pause", self.c))
        same("status", self.inspect(self.c, ".State.Status"), "paused")
        if not frozen(self.pid(self.c)):
            raise Failed("its cgroup is not frozen")

    def s_unpause(self, rt):
        ok(self.cmd(*self.pre(rt), "unpause", self.c))
        same("status", self.inspect(self.c, ".State.Status"), "running")
        same("exec after it", ok(self.cmd(*self.pre(rt), "exec", self.c, "echo", "awake")), "awake\n")

    def s_update(self, rt):
        ok(self.cmd(*self.pre(rt), "update", "--memory", "32m", "--memory-swap", "32m", self.c))
        same("memory limit", memory_limit(self.pid(self.c)), str(32 * MIB))

    def s_oom(self, rt):
        p = sh(self.cmd(*self.pre(rt), "exec", self.c, "sh", "-c", "a=x; while :; do a=$a$a; done"))
        same("status of a process that takes too much", p.returncode, 137)

    def s_kill(self, rt):
        if self.inspect(self.c, ".State.Running") != "true":
            # The kernel may have chosen its first process.
            ok(self.cmd(*self.pre(rt), *self.remove, self.c))
            self.s_start(rt)
        ok(self.cmd(*self.pre(rt), "kill", "-s", "HUP", self.c))
        until("the container's answer to SIGHUP", lambda: "got hup" in sh(self.cmd("logs", self.c)).stdout)

    def s_stop(self, rt):
        ok(self.cmd(*self.pre(rt), "stop", "-t", "10", self.c))
        same("exit code", self.inspect(self.c, ".State.ExitCode"), "3")

    def s_restart(self, rt):
        ok(self.cmd(*self.pre(rt), "start", self.c))
        same("exec", ok(self.cmd(*self.pre(rt), "exec", self.c, "echo", "again")), "again\n")
        ok(self.cmd(*self.pre(rt), "kill", self.c))
        until("the end", lambda: self.inspect(self.c, ".State.Running") == "false")
        same("exit code", self.inspect(self.c, ".State.ExitCode"), "137")
        ok(self.cmd(*self.pre(rt), "start", self.c))

    def s_rm(self, rt):
        pid = self.pid(self.c)
        ok(self.cmd(*self.pre(rt), *self.remove, self.c))
        if os.path.exists("/proc/" + pid):
            raise Failed("its process %s still runs" % pid)

    def s_logs(self, rt):
        c = self.fresh()
        ok(self.run(rt, "-d", "--name", c, self.image, "sh", "-c", "echo out; echo err >&2"))
        same("wait", ok(self.cmd(*self.pre(rt), "wait", c)).strip(), "0")
        p = sh(self.cmd("logs", c))
        same("logs", (p.stdout, p.stderr), ("out\n", "err\n"))
        ok(self.cmd(*self.pre(rt), "rm", c))

    def s_input(self, rt):
        p = subprocess.run(self.run(rt, "--rm", "-i", self.image, "sh", "-c", "cat; echo end"), input=b"a\nb\n", stdout=subprocess.PIPE, timeout=30)
        same("output", (p.returncode, p.stdout), (0, b"a\nb\nend\n"))

    def s_attach(self, rt):
        c = self.fresh()
        ok(self.run(rt, "-d", "--name", c, self.image, "sh", "-c", "while [ ! -e /stop ]; do echo tick; sleep 0.1; done; exit 5"))
        p = subprocess.Popen(self.cmd(*self.pre(rt), "attach", "--no-stdin", c), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if p.stdout.readline() != b"tick\n":
            raise Failed("no output: %s" % p.stderr.read())
        ok(self.cmd(*self.pre(rt), "exec", c, "touch", "/stop"))
        p.communicate(timeout=30)
        # Podman's ends with 0 where Docker's ends as the container does: what counts is that the caller sees no difference.
        same("status", p.returncode, self.seen.setdefault("attach", p.returncode))
        until("the end", lambda: self.inspect(c, ".State.Running") == "false")
        same("exit code", self.inspect(c, ".State.ExitCode"), "5")
        ok(self.cmd(*self.pre(rt), "rm", c))

    def s_again(self, rt):
        c = self.fresh()
        ok(self.run(rt, "-d", "--name", c, "--restart", "on-failure:2", self.image, "sh", "-c", "echo run; exit 3"))
        until("three runs", lambda: sh(self.cmd("logs", c)).stdout == "run\n" * 3)
        until("the end", lambda: self.inspect(c, ".State.Running") == "false")
        same("exit code", self.inspect(c, ".State.ExitCode"), "3")
        same("restarts", self.inspect(c, ".RestartCount"), "2")
        ok(self.cmd(*self.pre(rt), "rm", c))

    def s_health(self, rt):
        c = self.fresh()
        ok(self.run(rt, "-d", "--name", c, "--health-cmd", "test ! -e /sick", "--health-interval", "1s", "--health-retries", "1", self.image, "sleep", "1000"))
        probe = lambda: self.inspect(c, ".State.Health.Status") if self.name == "docker" else \
            ("healthy" if sh(self.cmd(*self.pre(rt), "healthcheck", "run", c)).returncode == 0 else "unhealthy")
        until("healthy", lambda: probe() == "healthy")
        ok(self.cmd(*self.pre(rt), "exec", c, "touch", "/sick"))
        until("unhealthy", lambda: probe() == "unhealthy")
        ok(self.cmd(*self.pre(rt), *self.remove, c))

    def s_share(self, rt):
        a = self.fresh()
        ok(self.run(rt, "-d", "--name", a, self.image, "sleep", "1000"))
        argv = self.run(rt, "--rm", "--pid", "container:" + a, "--network", "container:" + a, self.image, "ps")
        argv.remove("--network=none")
        out = ok(argv)
        if "sleep 1000" not in out:
            raise Failed("does not see the other's process: " + out)
        ok(self.cmd(*self.pre(rt), *self.remove, a))

    def s_create(self, rt):
        c = self.fresh()
        ok(self.cmd(*self.pre(rt), "create", *self.opt(rt), "--name", c, self.image, "sleep", "1000"))
        ok(self.cmd(*self.pre(rt), "start", c))
        ok(self.cmd(*self.pre(rt), *self.remove, c))

    # Images, in both directions. The peer's column shows that the client itself takes back what it gave.

    def image_id(self, name):
        return ok(self.cmd("image", "inspect", "--format", "{{.Id}}", name)).strip().removeprefix("sha256:")

    def s_image_in(self, rt):
        file, name = os.path.join(self.dir, rt + "-in.tar"), "docker.io/library/exchange-%s:1" % rt
        for how in self.saved:
            if rt == "ours":
                self.builder("load", "-i", self.o.image)
                self.builder("tag", self.image, name)
                self.builder("save", "--format", how, "-o", file, name)
                want = self.builder("inspect", "-f", "{{.Id}}", name).strip().removeprefix("sha256:")
            else:
                ok(self.cmd("tag", self.image, name))
                ok(self.cmd("save", *self.save_as(how), "-o", file, name))
                want = self.image_id(name)
                ok(self.cmd("rmi", name))
            ok(self.cmd("load", "-i", file))
            # Podman gives an image another id when it saves it in another format.
            if rt == "ours" or how == "docker-archive":
                same("id by " + how, self.image_id(name), want)
            same("output", ok(self.run(rt, "--rm", name, "echo", "loaded")), "loaded\n")
            ok(self.cmd("rmi", name))
            os.unlink(file)

    def s_image_out(self, rt):
        for how in self.saved:
            file = os.path.join(self.dir, rt + "-out.tar")
            ok(self.cmd("save", *self.save_as(how), "-o", file, self.image))
            if rt == "ours":
                shutil.rmtree(self.dir + "/store", ignore_errors=True)
                self.builder("load", "-i", file)
                if how == "docker-archive":
                    same("id by " + how, self.builder("inspect", "-f", "{{.Id}}", self.image).strip(), "sha256:" + self.image_id(self.image))
                same("check", sh([self.o.builder, "--root", self.dir + "/store", "check"]).returncode, 0)
            else:
                ok(self.cmd("load", "-i", file))
            os.unlink(file)

    def s_left(self, rt):
        # The daemon puts away what ran with --rm in its own time: what must not be is that something stays.
        end = time.monotonic() + 10
        while ok(self.cmd("ps", "-aq")).strip() and time.monotonic() < end:
            time.sleep(0.1)
        same("containers", ok(self.cmd("ps", "-a", "--format", "{{.Names}} {{.Status}} {{.Command}}")).strip(), "")
        left = [d for d in glob.glob("/sys/fs/cgroup/**/%s*/*/" % self.parent, recursive=True) if self.of_a_container(d)]
        if left:
            raise Failed("cgroups: %s" % left[:3])

    def of_a_container(self, path):
        return True


class Docker(DockerLike):
    saved = ["docker-archive"]
    names_hosts, bridge = True, "bridge"

    def save_as(self, how):
        return []

    name, needs = "docker", {"/usr/bin/docker": "docker.io", "/usr/sbin/dockerd": "docker.io", "/usr/bin/containerd": "containerd"}

    def start(self):
        self.base = [*self.o.enter, "/usr/bin/docker", "--host", "unix:///run/berth-docker.sock"]
        argv = [*self.o.enter, "/usr/sbin/dockerd", "--host", "unix:///run/berth-docker.sock", "--data-root", self.dir + "/data", "--exec-root", "/run/docker",
                "--pidfile", "/run/berth-docker.pid", "--experimental", "--cgroup-parent", self.cgroup_parent(), "--exec-opt", "native.cgroupdriver=" + self.o.cgroup_driver]
        if self.o.init:
            argv += ["--init-path", self.o.init]
        runtimes = {}
        for n, p in self.o.runtimes.items():
            if n != "shim":
                runtimes[n + "-rt"] = {"path": p}
                runtimes[n + "-build"] = {"path": self.logged(n)}
        conf = os.path.join(self.dir, "daemon.json")
        self.conf = {"runtimes": runtimes}
        if "shim" in self.o.runtimes:
            version = ok([*self.o.enter, "/usr/sbin/dockerd", "--version"]).split()[2]
            if int(version.split(".")[0]) < 23:
                self.cannot["shim"] = "docker %s knows no runtimeType" % version.rstrip(",")
            else:
                options = {"ConfigPath": os.path.join(self.dir, "shim.toml")}
                open(options["ConfigPath"], "w").write("BinaryName = \"%s\"\n" % self.o.runtimes["shim"])
                runtimes["shim-rt"] = {"runtimeType": "io.containerd.berth.v2", "options": options}
        self.default_runtime("runc-rt")
        argv += ["--config-file", conf]
        try:
            self.daemon(argv, self.base + ["version"], "dockerd")
        except Failed as e:
            # A kernel without tables for addresses: its containers have no network then.
            self.daemon([*argv, "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"], self.base + ["version"], "dockerd")
            lines = [l for l in str(e).splitlines() if "failed" in l]
            self.no_network = lines[-1].strip() if lines else str(e)
        ok(self.cmd("load", "-q", "-i", self.o.image))

    def default_runtime(self, name):
        self.conf["default-runtime"] = name
        json.dump(self.conf, open(os.path.join(self.dir, "daemon.json"), "w"))
        if self.daemons:
            self.daemons[-1].send_signal(signal.SIGHUP)
            until("the daemon has read its configuration", lambda: ok(self.cmd("info", "--format", "{{.DefaultRuntime}}")).strip() == name)

    def build(self, rt, dir, name):
        # The builder inside the daemon has no flag for it: it takes the default one.
        rt = "runc" if rt == "runc" else "ours"
        self.default_runtime(rt + "-build")
        try:
            ok(self.cmd("build", "-q", "--network=none", "-t", name, dir), env={**os.environ, "DOCKER_BUILDKIT": "0"})
        finally:
            self.default_runtime("runc-rt")
        return self.log_of(rt)

    def checkpoint(self, rt, c):
        ok(self.cmd("checkpoint", "create", c, "one"))

    def restore(self, rt, c):
        ok(self.cmd("start", "--checkpoint", "one", c))

    def plain_http(self):
        return []  # it takes a registry on loopback as it is

    def pre(self, rt):
        return []

    def opt(self, rt):
        return ["--runtime", rt + "-rt", "--network=none"]

    def version(self):
        return ok(self.cmd("version", "--format", "{{.Server.Version}}")).strip()


class Podman(DockerLike):
    saved = ["docker-archive", "oci-archive"]
    # Names need a plugin (dnsname, aardvark-dns) that Debian does not install with it.
    names_hosts, bridge = False, "podman"
    # Where it may not raise limits, as on a host without CAP_SYS_RESOURCE, its own wishes are too high.
    low_limits = ["--ulimit", "nproc=500", "--ulimit", "nofile=1024"]

    def save_as(self, how):
        return ["--format", how]

    name, needs = "podman", {"/usr/bin/podman": "podman", "/usr/bin/conmon": "conmon"}
    remove = ["rm", "-f", "-t", "0"]  # it waits ten seconds for SIGTERM otherwise

    def with_init(self):
        return ["--init", "--init-path", self.o.init]

    def start(self):
        conf = os.path.join(self.dir, "containers.conf")
        open(conf, "w").write('[engine]\nevents_logger = "file"\ncgroup_manager = "%s"\n[containers]\nlog_driver = "k8s-file"\n[network]\nnetwork_config_dir = "%s/networks"\n' % (self.o.cgroup_driver, self.dir))
        os.environ["CONTAINERS_CONF"] = conf
        os.environ["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "1"
        run = os.environ["XDG_RUNTIME_DIR"] if self.o.rootless else "/run"
        self.base = [*self.o.enter, "/usr/bin/podman", "--root", self.dir + "/data", "--runroot", run + "/berth-podman", "--storage-driver", "overlay",
                     "--cgroup-manager", self.o.cgroup_driver, "--tmpdir", run + "/berth-podman-tmp"]
        if sh(self.cmd("--runtime", self.o.runtimes["runc"], "info")).returncode:
            self.base[self.base.index("overlay")] = "vfs"
        ok(self.cmd("load", "-q", "-i", self.o.image))
        p = sh(self.on("runc", self.bridge, "--rm", self.image, "true"))
        if p.returncode:
            self.no_network = p.stderr.strip().splitlines()[-1]

    def build(self, rt, dir, name):
        ok(self.cmd("--runtime", self.logged(rt), "build", "-q", "--network=none", *self.low_limits, "-t", name, dir))
        return self.log_of(rt)

    def checkpoint(self, rt, c):
        ok(self.cmd(*self.pre(rt), "container", "checkpoint", c))

    def restore(self, rt, c):
        ok(self.cmd(*self.pre(rt), "container", "restore", c))

    def plain_http(self):
        return ["--tls-verify=false"]

    def pre(self, rt):
        conmon = ["--conmon", os.path.join(self.o.bin, "berth-conmon")] if rt == "shim" else []
        return [*conmon, "--runtime", self.o.runtimes[rt]]

    def opt(self, rt):
        # An ordinary user has a place given by systemd.
        return ["--network=none"] if self.o.rootless else ["--network=none", "--cgroup-parent", self.cgroup_parent()]

    def steps(self):
        *most, last = super().steps()
        return [*most, ("readiness is told to systemd", self.s_notify), ("logs in the journal", self.s_journal), last]

    def s_notify(self, rt):
        at = os.path.join(self.dir, "manager-" + rt)
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.settimeout(20)
        manager.bind(at)
        os.chmod(at, 0o777)
        told = dict(os.environ, NOTIFY_SOCKET=at)
        said = lambda: manager.recv(4096).decode().split()
        # By podman, once the container runs; by the service itself, whose word goes through the monitor.
        for mode in "conmon", "container":
            c = self.fresh()
            p = subprocess.Popen(self.run(rt, "-d", "--name", c, "--sdnotify", mode, self.image, "sleep", "1000"), env=told,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            words = []
            if mode == "container":
                until("it runs", lambda: sh(self.cmd("inspect", "--format", "{{.State.Running}}", c)).stdout.strip() == "true" or p.poll())
                inside = "/proc/%s/root/run/notify/notify.sock" % self.pid(c)
                until("its socket", lambda: os.path.exists(inside))
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", inside)
            while "READY=1" not in words:
                words += said()
            if p.wait(20):
                raise Failed("%s: %s" % (mode, p.stderr.read()))
            if not any(w.startswith("MAINPID=") for w in words):
                raise Failed("%s: no main process: %s" % (mode, words))
            ok(self.cmd(*self.pre(rt), *self.remove, c))

    def s_journal(self, rt):
        if not os.path.exists("/run/systemd/journal/socket"):
            raise Absent("no journal on this host")
        c = self.fresh()
        ok(self.run(rt, "--name", c, "--log-driver", "journald", self.image, "sh", "-c", "echo to the journal; echo $((6*7)) >&2"))
        # Podman's own entries have no text.
        seen = lambda: sorted(ok(["journalctl", "-q", *["--user"][:self.o.rootless], "-o", "cat", "CONTAINER_NAME=" + c]).split("\n"))
        lines = lambda: [line for line in seen() if line]
        until("its lines", lambda: len(lines()) >= 2)
        same("the journal", lines(), ["42", "to the journal"])
        logs = sh(self.cmd("logs", c))
        same("podman logs", (logs.stdout, logs.stderr), ("to the journal\n", "42\n"))
        ok(self.cmd(*self.pre(rt), *self.remove, c))

    def version(self):
        return ok(self.cmd("version", "--format", "{{.Client.Version}}")).strip()

    def of_a_container(self, path):
        return os.path.basename(path.rstrip("/")) != "conmon"  # the monitors' own, which podman keeps for the next one
