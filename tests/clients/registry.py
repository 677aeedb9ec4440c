"""A registry of Debian's, and skopeo: images go to and fro between them and the builder, and are the same afterwards."""
import json, os

from common import Failed, ok, same, sh, start_registry
from engines import Client


class Skopeo(Client):
    name, needs, columns = "skopeo", {"/usr/bin/skopeo": "skopeo", "/usr/bin/docker-registry": "docker-registry"}, ["ours"]

    def start(self):
        self.base = [*self.o.enter, "/usr/bin/skopeo"]
        self.repo = self.o.registry + "/by-skopeo"
        self.builder("load", "-i", self.o.image)
        self.image = "docker.io/library/berthbox:1"

    def version(self):
        return ok([*self.base, "--version"]).split()[2]

    def steps(self):
        return [("registry: what the builder pushed is what skopeo sees", self.s_push), ("registry: the builder pulls what skopeo copied", self.s_pull),
                ("OCI layout and archives, both ways", self.s_layouts), ("registry: tags", self.s_tags), ("registry: copy from place to place", self.s_copy),
                ("registry: deleted is gone", self.s_delete), ("registry: log in, push, pull, log out", self.s_login),
                ("registry: a list of platforms", self.s_list), ("registry: what it has", self.s_search)]

    def skopeo(self, *a):
        return ok([*self.base, *a])

    def there(self, ref):
        return json.loads(self.skopeo("inspect", "--tls-verify=false", "docker://" + ref))["Digest"]

    def digest(self, name):
        return self.builder("inspect", "-f", "{{.Digest}}", name).strip()

    def s_push(self, rt):
        name = self.repo + "/pushed:1"
        self.builder("tag", self.image, name)
        digest = os.path.join(self.dir, "digest")
        self.builder("push", "--tls-verify=false", "--digestfile", digest, name)
        same("digest", self.there(name), open(digest).read().strip())

    def s_pull(self, rt):
        name = self.repo + "/copied:1"
        self.skopeo("copy", "-q", "--dest-tls-verify=false", "docker-archive:" + self.o.image, "docker://" + name)
        self.builder("pull", "--tls-verify=false", name)
        same("digest", self.digest(name), self.there(name))
        same("check", sh([self.o.builder, "--root", self.dir + "/store", "check"]).returncode, 0)

    def s_layouts(self, rt):
        name = self.repo + "/pushed:1"
        for kind in ("oci", "oci-archive", "docker-archive"):
            by_skopeo, by_builder = os.path.join(self.dir, "a-" + kind), os.path.join(self.dir, "b-" + kind)
            label = ":there.example/x:1" if kind == "docker-archive" else ":1"
            self.skopeo("copy", "-q", "--src-tls-verify=false", "docker://" + name, kind + ":" + by_skopeo + label)
            self.builder("cp", kind + ":" + by_skopeo, kind + ":" + by_builder + label)
            config = lambda place: self.skopeo("inspect", "--config", "--raw", kind + ":" + place + label)
            same("config of " + kind, config(by_builder), config(by_skopeo))

    def s_tags(self, rt):
        for tag in ("1", "2", "later"):
            self.builder("tag", self.image, self.repo + "/tags:" + tag)
            self.builder("push", "--tls-verify=false", self.repo + "/tags:" + tag)
        tags = json.loads(self.skopeo("list-tags", "--tls-verify=false", "docker://" + self.repo + "/tags"))["Tags"]
        same("tags", sorted(tags), ["1", "2", "later"])

    def s_copy(self, rt):
        self.builder("cp", "--tls-verify=false", "docker://" + self.repo + "/tags:1", "docker://" + self.repo + "/elsewhere:1")
        same("digest", self.there(self.repo + "/elsewhere:1"), self.there(self.repo + "/tags:1"))

    def refused(self, word, *a, **kw):
        """a command that must fail, and say this"""
        p = sh([self.o.builder, "--root", self.dir + "/store", *a], **kw)
        if p.returncode == 0 or word not in p.stderr:
            raise Failed("%s: status %d: %s" % (" ".join(a), p.returncode, p.stderr))

    def s_delete(self, rt):
        name = self.repo + "/elsewhere:1"
        self.skopeo("delete", "--tls-verify=false", "docker://" + name)
        self.refused("elsewhere", "pull", "--tls-verify=false", name)
        # And by the builder, which wants the whole word for it.
        name = self.repo + "/tags:later"
        self.refused("docker://", "delete", "--tls-verify=false", name)
        self.builder("delete", "--tls-verify=false", "docker://" + name)
        self.refused("tags", "pull", "--tls-verify=false", name)

    def s_login(self, rt):
        # "open sesame"
        there = start_registry(self.dir, 5001, "ali:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n")
        auth, name = os.path.join(self.dir, "auth.json"), there + "/mine:1"
        mine = ["--authfile", auth, "--tls-verify=false"]
        self.builder("tag", self.image, name)
        self.refused("login", "push", *mine, name)
        self.refused("", "login", *mine, "-u", "ali", "--password-stdin", there, input="wrong")
        if os.path.exists(auth):
            raise Failed("a wrong password was kept")
        same("login", "Login Succeeded" in ok([self.o.builder, "login", *mine, "-u", "ali", "--password-stdin", there], input="open sesame\n"), True)
        same("mode of the file", os.stat(auth).st_mode & 0o777, 0o600)
        same("who", self.builder("login", "--get-login", "--authfile", auth, there).strip(), "ali")
        digest = os.path.join(self.dir, "digest")
        self.builder("push", *mine, "--digestfile", digest, name)
        # Others read the same file.
        same("digest", json.loads(self.skopeo("inspect", *mine, "docker://" + name))["Digest"], open(digest).read().strip())
        self.builder("rmi", name)
        self.builder("pull", *mine, name)
        self.builder("logout", "--authfile", auth, there)
        self.refused("login", "pull", *mine, name)
        self.refused("", "logout", "--authfile", auth, there)
        # And the other way round.
        self.skopeo("login", *mine, "-u", "ali", "-p", "open sesame", there)
        self.builder("pull", *mine, name)

    def s_list(self, rt):
        both, arm = self.repo + "/both:1", self.repo + "/arm:1"
        context = os.path.join(self.dir, "context")
        os.makedirs(context)
        open(context + "/Dockerfile", "w").write("FROM scratch\nCOPY Dockerfile /\n")
        self.builder("build", "-q", "--platform", "linux/arm64", "-t", arm, context)
        self.builder("manifest", "create", both, self.image)
        self.builder("manifest", "add", both, arm)
        self.refused("both", "manifest", "create", both)
        self.builder("manifest", "annotate", "--variant", "v8", both, self.digest(arm))
        self.builder("manifest", "push", "--tls-verify=false", both)
        for seen in self.builder("manifest", "inspect", both), self.skopeo("inspect", "--tls-verify=false", "--raw", "docker://" + both):
            platforms = [m["platform"] for m in json.loads(seen)["manifests"]]
            same("platforms", [(p["architecture"], p.get("variant")) for p in platforms], [("amd64", None), ("arm64", "v8")])
        self.skopeo("copy", "-q", "--override-arch", "arm64", "--src-tls-verify=false", "docker://" + both, "oci:" + self.dir + "/arm:1")
        self.builder("manifest", "remove", both, self.digest(arm))
        same("left", len(json.loads(self.builder("manifest", "inspect", both))["manifests"]), 1)
        self.builder("manifest", "rm", both)
        self.refused("both", "manifest", "inspect", "--tls-verify=false", both + "-not")

    def s_search(self, rt):
        for tag in ("1", "2"):
            self.builder("tag", self.image, self.repo + "/listed:" + tag)
            self.builder("push", "--tls-verify=false", self.repo + "/listed:" + tag)
        found = ok([self.o.builder, "search", "--tls-verify=false", "--list-tags", self.repo + "/listed"])
        same("tags", sorted(line.split()[-1] for line in found.splitlines()[1:]), ["1", "2"])
        same("none", sh([self.o.builder, "search", "--tls-verify=false", self.o.registry + "/nothing-like-this"]).stdout.splitlines()[1:], [])
