#!/bin/bash
# An ordinary user runs a container with a memory limit that holds. In the VM, as the user `tester`:
#   berth-vm --systemd --user tester -- tests/vm/rootless.sh target/dist/berth-runtime     limits through systemd --user
#   berth-vm --user tester -- tests/vm/rootless.sh target/dist/berth-runtime               limits in a delegated group
# One line per check; the last line is "N passed, N failed, N skipped".
set -uo pipefail
runtime=$(readlink -f "${1:?usage: rootless.sh RUNTIME}")
[[ $EUID != 0 ]] || { echo "rootless: run me as an ordinary user" >&2; exit 2; }
busybox=$(command -v busybox)
dir=$(mktemp -d /var/tmp/rootless.XXXXXX)
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0
systemd=()
[[ $(cat /proc/1/comm) != systemd ]] || systemd=(--systemd-cgroup)

check() { # check NAME EXPECTED COMMAND...: its output (one line) and, after a colon, its status
	local name=$1 want=$2 got status
	shift 2
	rm -f "$dir/err" # the last container's user may own it now
	got=$("$@" 2>"$dir/err" </dev/null)
	status=$?
	got="$(tr '\n' ' ' <<<"$got" | sed 's/ *$//'):$status"
	if [[ $got = "$want" ]]; then
		echo "ok    $name"
		passed=$((passed + 1))
	else
		echo "FAIL  $name: got '$got', wanted '$want'; $(tail -2 "$dir/err" | tr '\n' ' ')"
		failed=$((failed + 1))
	fi
}
bundle() { # bundle NAME JQ-FILTER
	mkdir -p "$dir/$1/rootfs"/{bin,dev,etc,proc,sys,tmp}
	cp "$busybox" "$dir/$1/rootfs/bin"
	local a
	for a in sh cat id echo sleep true ls hostname; do ln -sf busybox "$dir/$1/rootfs/bin/$a"; done
	(cd "$dir/$1" && rm -f config.json && "$runtime" spec --rootless && jq ".process.terminal = false | $2" config.json >c && mv c config.json) ||
		echo "FAIL  bundle $1"
}
run() { # run NAME [OPTION...]
	local name=$1
	shift
	"$runtime" "$@" run --bundle "$dir/$name" "r-$name-$RANDOM"
}
lifecycle() {
	local id=life-$$
	"$runtime" "${systemd[@]}" create --bundle "$dir/sleep" "$id" >/dev/null && "$runtime" start "$id" &&
		"$runtime" exec "$id" sh -c 'echo "$(hostname) $(id -u)"' && "$runtime" state "$id" | jq -r .status &&
		"$runtime" kill "$id" KILL && for _ in {1..200}; do [[ $("$runtime" state "$id" | jq -r .status) != stopped ]] || break; sleep 0.05; done
	"$runtime" delete "$id"
}

bundle id '.process.args = ["sh", "-c", "id -u; id -g"]'
check "run, one id" "0 0:0" run id
bundle many ".process.args = [\"sh\", \"-c\", \"cat /proc/self/uid_map | wc -l\"]
	| .linux.uidMappings = [{containerID: 0, hostID: $UID, size: 1}, {containerID: 1, hostID: 100000, size: 65536}]
	| .linux.gidMappings = .linux.uidMappings"
sed -i 's/cat \/proc\/self\/uid_map | wc -l/while read l; do echo \$l; done <\/proc\/self\/uid_map/' "$dir/many/config.json"
check "run, subordinate ids (newuidmap)" "0 $UID 1 1 100000 65536:0" run many
bundle other ".process.args = [\"id\", \"-u\"] | .process.user = {uid: 1000, gid: 1000}
	| .linux.uidMappings = [{containerID: 0, hostID: $UID, size: 1}, {containerID: 1, hostID: 100000, size: 65536}]
	| .linux.gidMappings = .linux.uidMappings"
check "run as another subordinate user" "1000:0" run other
bundle code '.process.args = ["sh", "-c", "exit 42"]'
check "exit code" ":42" run code
bundle sleep '.process.args = ["sleep", "1000"] | .hostname = "inside"'
check "create, start, exec, state, kill, delete" "inside 0 running:0" lifecycle

limits='| .linux.resources = {memory: {limit: 33554432, swap: 33554432}, pids: {limit: 40}, cpu: {quota: 50000, period: 100000}}'
mounts='.mounts += [{destination: "/sys/fs/cgroup", type: "cgroup", source: "cgroup", options: ["nosuid", "noexec", "nodev", "relatime", "ro"]}]
	| .linux.namespaces += [{type: "cgroup"}] | .linux.namespaces |= unique_by(.type)'
path=
# Without systemd the user owns a group of its own; the runtime's caller says where.
if [[ ${#systemd[@]} = 0 ]]; then path='| .linux.cgroupsPath = "/tester/berth"'; fi
bundle limits ".process.args = [\"sh\", \"-c\", \"cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max\"] | $mounts $limits $path"
check "limits are in force" "33554432 40 50000 100000:0" run limits "${systemd[@]}"
bundle oom ".process.args = [\"sh\", \"-c\", \"a=x; while :; do a=\$a\$a; done\"] | $mounts $limits $path"
check "the memory limit holds: 32 MiB, then SIGKILL" ":137" run oom "${systemd[@]}"
bundle nolimit '.process.args = ["echo", "in"]'
check "no limits asked for: no cgroup needed" "in:0" run nolimit
left=$(find /sys/fs/cgroup -user "$(id -un)" -type d \( -name '*r-limits*' -o -name '*r-oom*' -o -name 'berth' -o -name '*life-*' \) 2>/dev/null | head -3)
check "no cgroup is left" ":0" echo -n "$left"
check "no state is left" ":0" sh -c "ls -A '${XDG_RUNTIME_DIR:-/run/user/$UID}/berth/runtime'"
echo "$passed passed, $failed failed, $skipped skipped"
[[ $failed = 0 ]]
