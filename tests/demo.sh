#!/bin/bash
# The main job, shown to a person: a root file system, a bundle, and one container from create to delete.
#   demo.sh RUNTIME_BINARY
# Every command is printed as one would type it, then run. A step that does not do what it should ends the demo with an error.
set -euo pipefail
runtime=$(readlink -f "${1:?usage: demo.sh RUNTIME_BINARY}")
[[ $EUID = 0 ]] || { echo "demo: needs root (it makes a container with cgroups and every namespace)" >&2; exit 1; }
busybox=$(command -v busybox) || { echo "demo: no busybox; apt-get install busybox-static" >&2; exit 1; }
command -v jq >/dev/null || { echo "demo: no jq; apt-get install jq" >&2; exit 1; }

. "$(dirname "$0")/demo-lib.sh"
dir=$(mktemp -d /var/tmp/berth-demo.XXXXXX)
id=hello-$$
export PATH=$dir/bin:$PATH
mkdir -p "$dir/bin" "$dir/state"
# The state lies in the demo's own folder, so that it meddles with no other container.
printf '#!/bin/sh\nexec %q --root %q "$@"\n' "$runtime" "$dir/state" >"$dir/bin/berth-runtime"
chmod 755 "$dir/bin/berth-runtime"
cd "$dir"

finish() {
	local status=$?
	trap - EXIT
	if [[ -d $dir/state/$id ]]; then "$dir/bin/berth-runtime" delete --force "$id" || status=1; fi
	if [[ -n ${logger:-} ]]; then kill "$logger" 2>/dev/null || true; fi
	cd /
	rm -rf --one-file-system "$dir"
	ended "$status"
}
trap finish EXIT

printf '%sberth-runtime: one container, from an empty folder to nothing left%s  (%s, kernel %s)\n' "$bold" "$off" "$("$runtime" --version | head -1)" "$(uname -r)"

title "A root file system: one static busybox, and a name for each of its tools"
show 'mkdir -p rootfs/{bin,dev,etc,proc,sys,tmp}'
show "cp $busybox rootfs/bin/busybox"
show 'chroot rootfs /bin/busybox --install -s /bin && ls rootfs/bin | wc -l'

title "A bundle: 'spec' writes a config.json to start from; we give it a command and some limits"
show 'berth-runtime spec'
show "jq '.process.terminal = false
     | .process.args = [\"sh\", \"-c\", \"echo started as pid \$\$ on \$(hostname); trap \\\"echo bye; exit 7\\\" TERM; while :; do sleep 1 & wait \$!; done\"]
     | .hostname = \"demo\" | .root.readonly = true
     | .linux.resources.memory = {limit: 33554432} | .linux.resources.pids = {limit: 20}' config.json > c && mv c config.json"
show "jq -c '{args: .process.args, namespaces: [.linux.namespaces[].type], memory: .linux.resources.memory}' config.json"
expect '33554432'

title "explain: what this config means on this host, before anything is run"
show 'berth-runtime explain | head -20'

title "create: namespaces, root, limits are made; the process waits"
printf '%s$ berth-runtime create --pid-file pid %s%s\n' "$dim" "$id" "$off"
: >log
# The container's output goes to a file, as it would with any engine: it lives on when create has returned.
berth-runtime create --pid-file pid "$id" >log 2>&1 </dev/null || { cat log >&2; fail "create failed"; }
show "berth-runtime state $id | jq -c '{id, status, pid}'"
expect '"status":"created"'
show 'ls -l /proc/$(cat pid)/ns | sed "s/.* \([a-z_]*\) -> /\1 -> /" | grep -E "^(pid|net|mnt|cgroup) "'

title "start: the waiting process becomes the container's own"
show "berth-runtime start $id"
show "berth-runtime state $id | jq -c '{id, status, pid}'"
expect '"status":"running"'
for ((i = 0; i < 100; i++)); do if grep -q started log; then break; fi; sleep 0.05; done
show 'cat log'
expect 'started as pid 1 on demo'

title "exec: another process inside, confined as the first one"
show "berth-runtime exec $id sh -c 'hostname; ps; id'"
expect '^demo$'
show "berth-runtime exec $id sh -c 'ip link 2>/dev/null | grep -c \"^[0-9]\"; grep -E \"CapEff|NoNewPrivs|Seccomp:\" /proc/self/status'"
expect 'NoNewPrivs:.*1'
refuse "berth-runtime exec $id sh -c 'echo hacked > /etc/passwd'"
refuse "berth-runtime exec $id no-such-program"

title "ps and list: what runs, seen from outside"
show "berth-runtime ps $id"
show 'berth-runtime list'
expect "$id +[0-9]+ +running"

title "A mistake is one sentence that says where"
show "mkdir bad && jq '.linux.namespaces[1].type = \"nett\"' config.json > bad/config.json"
refuse 'berth-runtime create --bundle bad web'
expect 'namespaces\[1\]'

title "kill: SIGTERM to the first process, which says goodbye"
show "berth-runtime kill $id TERM"
for ((i = 0; i < 200; i++)); do if [[ $(berth-runtime state "$id" | jq -r .status) = stopped ]]; then break; fi; sleep 0.05; done
show "berth-runtime state $id | jq -c '{id, status}'"
expect '"status":"stopped"'
show 'cat log'
expect 'bye'

title "delete: nothing is left, not even the cgroups"
show "berth-runtime delete $id"
refuse "berth-runtime state $id"
show 'berth-runtime list'
show "find /sys/fs/cgroup -type d -name '$id*' | wc -l"
expect '^0$'

title "run: all of that in one go, timed"
show "jq '.process.args = [\"echo\", \"hello from a container\"]' config.json > c && mv c config.json"
TIMEFORMAT='%R seconds'
show "time berth-runtime run $id"
expect 'hello from a container'
