"""A registry of Debian's, and skopeo: images go to and fro between them and the builder, and are the same afterwards."""
import json, os

from common import Failed, ok, same, sh
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
                ("registry: deleted is gone", self.s_delete)]

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

    def s_delete(self, rt):
        name = self.repo + "/elsewhere:1"
        self.skopeo("delete", "--tls-verify=false", "docker://" + name)
        p = sh([self.o.builder, "--root", self.dir + "/store", "pull", "--tls-verify=false", name])
        if p.returncode == 0 or "elsewhere" not in p.stderr:
            raise Failed("status %d: %s" % (p.returncode, p.stderr))
