"""Debian by debootstrap, the same tree that the demo has: made once, and kept."""
import glob, os, shutil

from common import ok, sh

BASE = "/var/cache/berth-demo/bookworm"


def make_base():
    """Debian with a compiler, the same that the demo has"""
    if os.path.exists(BASE + ".complete"):
        return
    shutil.rmtree(BASE, ignore_errors=True)
    os.makedirs(BASE)
    targets = ok(["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"]).split("\n")
    mirror = [t.split()[2] for t in targets if t.startswith("Debian Debian ")][:1]
    ok(["debootstrap", "--variant=minbase", "--include=gcc,libc6-dev", "bookworm", BASE, *mirror], timeout=900)
    for junk in glob.glob(BASE + "/var/cache/apt/archives/*.deb") + glob.glob(BASE + "/var/lib/apt/lists/*_*"):
        os.unlink(junk)
    sh(["sh", "-c", "rm -rf %s/dev/*" % BASE])
    open(BASE + ".complete", "w")
