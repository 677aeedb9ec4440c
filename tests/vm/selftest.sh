#!/bin/bash
# Checks what a container runtime needs from its host. Run it in the VM, as root
# or (rootless part only) as an unprivileged user:
#   berth-vm [--systemd] [--user tester] -- tests/vm/selftest.sh
# One line per check; the exit status is the number of failures.
fails=0
ok() { # ok NAME COMMAND...
	local name=$1 out t=$EPOCHREALTIME
	shift
	if out=$("$@" 2>&1); then out="ok    $name"; else out="FAIL  $name: $(tail -3 <<<"$out" | tr '\n' ' ')"; fails=$((fails + 1)); fi
	awk -v o="$out" -v a="$t" -v b="$EPOCHREALTIME" 'BEGIN { printf "%s (%.2f s)\n", o, b - a }'
}
info() { printf '%-9s%s\n' "$1" "$2"; }

info kernel "$(uname -r), $(nproc) CPU, init $(cat /proc/1/comm)"
info lsm "$(cat /sys/kernel/security/lsm 2>/dev/null)"
info landlock "ABI $(perl -e 'print syscall(444, 0, 0, 1)') (-1: none)"
info cgroup "$(cat /sys/fs/cgroup/cgroup.controllers)"
info mine "$(cat /proc/self/cgroup) -> $(cat "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/../cgroup.subtree_control" 2>/dev/null)"

dir=$(mktemp -d /var/tmp/selftest.XXXXXX)
bundle() { # bundle NAME JQ-FILTER SPEC-OPTION...: a busybox bundle
	mkdir -p "$dir/$1/rootfs"/{bin,dev,proc,sys,tmp}
	cp /bin/busybox "$dir/$1/rootfs/bin"
	for a in sh cat id echo sleep mount; do ln -sf busybox "$dir/$1/rootfs/bin/$a"; done
	(cd "$dir/$1" && rm -f config.json && runc spec "${@:3}" &&
		jq ".process.terminal = false | $2" config.json >c && mv c config.json)
}
limits='.process.args = ["sh", "-c", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max"]
	| .linux.resources += {memory: {limit: 67108864}, pids: {limit: 50}, cpu: {quota: 50000, period: 100000}}'
limited() { # limited RUNTIME...: are the limits in force?
	local out
	out=$("$@" run -b "$dir/limits" "t$RANDOM") || return
	[[ $(tr '\n' ' ' <<<"$out") = "67108864 50 50000 100000 " ]] || { echo "got: $out"; return 1; }
}

if [[ $EUID = 0 ]]; then
	bundle limits "$limits"
	for r in runc crun; do ok "$r with limits" limited $r; done
	if [[ $(cat /proc/1/comm) = systemd ]]; then
		jq '.linux.cgroupsPath = "system.slice:berth:t1"' "$dir/limits/config.json" >"$dir/c" && cp "$dir/c" "$dir/limits/config.json"
		for r in runc crun; do ok "$r --systemd-cgroup with limits" limited $r --systemd-cgroup; done
	fi
	bundle oom '.process.args = ["sh", "-c", "a=x; while :; do a=$a$a; done"] | .linux.resources += {memory: {limit: 33554432, swap: 33554432}}'
	oom() { runc run -b "$dir/oom" oom; [[ $? = 137 ]]; }
	ok "memory limit kills" oom
	if grep -qw cpuset /sys/fs/cgroup/cgroup.controllers; then
		bundle cpuset '.process.args = ["cat", "/sys/fs/cgroup/cpuset.cpus.effective"] | .linux.resources += {cpu: {cpus: "0"}}'
		ok "cpuset" runc run -b "$dir/cpuset" cpuset
	fi
	overlay() { mkdir -p "$dir/o"/{l,u,w,m} && mount -t overlay -o "lowerdir=$dir/o/l,upperdir=$dir/o/u,workdir=$dir/o/w" o "$dir/o/m" && umount "$dir/o/m"; }
	ok "overlay on the root file system" overlay
	network() {
		ip netns add t1 && ip link add br9 type bridge && ip addr add 10.9.0.1/24 dev br9 && ip link set br9 up &&
			ip link add v9 type veth peer name eth0 netns t1 && ip link set v9 master br9 up &&
			ip -n t1 addr add 10.9.0.2/24 dev eth0 && ip -n t1 link set eth0 up && ip -n t1 route add default via 10.9.0.1 &&
			ip netns exec t1 ping -c1 -W5 10.9.0.1
	}
	ok "bridge, veth, netns" network
	ok "nft: table, NAT, counter" nft -f - <<-'EOF'
		table ip berth { chain post { type nat hook postrouting priority 100; ip saddr 10.9.0.0/24 counter masquerade; };
		chain in { type filter hook input priority 0; ct state established accept; }; }
	EOF
	ok "iptables-nft: MASQUERADE, comment" iptables -t nat -A POSTROUTING -s 10.9.0.0/24 -m comment --comment x -j MASQUERADE
	ok "iptables-nft: DNAT, addrtype" iptables -t nat -A PREROUTING -p tcp --dport 80 -m addrtype --dst-type LOCAL -j DNAT --to 10.9.0.2:80
	ok "loop device" sh -c 'truncate -s 16M "$0/img" && mkfs.ext4 -q "$0/img" && mount -o loop "$0/img" /mnt && umount /mnt' "$dir"
	apparmor() { echo 'profile berth-test { file, }' | apparmor_parser -r && grep -q berth-test /sys/kernel/security/apparmor/profiles; }
	ok "apparmor: load a profile" apparmor
else
	bundle limits '.process.args = ["id"]' --rootless
	for r in runc crun; do ok "rootless $r" $r run -b "$dir/limits" "t$RANDOM"; done
	bundle limits "$limits | .linux.cgroupsPath = \"${1-}\"" --rootless
	if [[ $(cat /proc/1/comm) = systemd ]]; then
		for r in runc crun; do ok "rootless $r --systemd-cgroup with limits" limited $r --systemd-cgroup; done
	fi
	ok "user namespace with subuids" unshare --map-auto --map-root-user sh -c 'touch "$0/f" && chown 5:5 "$0/f"' "$dir"
	ok "overlay in a user namespace" unshare --map-auto --map-root-user --mount sh -c \
		'cd $0 && mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w,userxattr o m && touch m/x' "$dir"
	ok "network namespace, dummy device" unshare -rn sh -c 'ip link add d0 type dummy 2>&1 || ip link add d0 type veth'
fi
ok "seccomp filter" sh -c 'grep -q "Seccomp_filters" /proc/self/status'
exit $fails
