#!/bin/sh
# install.sh ROOT: puts the programs below ROOT/opt/berth/bin, and a runtime into the configuration of the containerd there.
# May be run again and again: what is there already is left alone, and containerd is restarted only after a change.
#   PROGRAMS  where the programs are (default /programs)
set -eu
root=${1:?usage: install.sh ROOT}
programs=${PROGRAMS:-/programs}
bin=/opt/berth/bin
changed=

mkdir -p "$root$bin"
for name in berth-runtime berth-builder berth-shim berth-init; do
	cmp -s "$programs/$name" "$root$bin/$name" && continue
	# Whole, or not at all: it may be executed at this moment.
	cp "$programs/$name" "$root$bin/$name.new"
	chmod 755 "$root$bin/$name.new"
	mv "$root$bin/$name.new" "$root$bin/$name"
	echo "installed $bin/$name"
done
ln -sf berth-shim "$root$bin/containerd-shim-berth-v2"

# The table of runtimes is another one in each version of the configuration.
config=$root/etc/containerd/config.toml
mkdir -p "$root/etc/containerd/conf.d"
version=$(sed -n 's/^ *version *= *\([0-9]*\).*/\1/p' "$config" 2>/dev/null | head -n 1)
case ${version:-2} in
2) table='plugins."io.containerd.grpc.v1.cri".containerd.runtimes.berth' ;;
3 | 4) table="plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.berth" ;;
*) echo "install.sh: $config is of version $version, which is not known here" >&2; exit 1 ;;
esac
ours=$root/etc/containerd/conf.d/berth.toml
cat >"$ours.new" <<END
version = ${version:-2}
[$table]
  runtime_type = "io.containerd.berth.v2"
  runtime_path = "$bin/containerd-shim-berth-v2"
  [$table.options]
    BinaryName = "$bin/berth-runtime"
    SystemdCgroup = true
END
if cmp -s "$ours.new" "$ours"; then rm "$ours.new"; else mv "$ours.new" "$ours"; changed=yes; fi
if ! grep -q '^ *imports *=' "$config" 2>/dev/null; then
	# Tables may not stand before it.
	{ echo 'imports = ["/etc/containerd/conf.d/*.toml"]'; if [ -e "$config" ]; then cat "$config"; else echo "version = 2"; fi; } >"$config.new"
	mv "$config.new" "$config"
	changed=yes
elif ! grep '^ *imports *=' "$config" | grep -q 'conf\.d/\*\.toml'; then
	echo "install.sh: $config imports other files: add /etc/containerd/conf.d/*.toml to its imports" >&2
	exit 1
fi

if [ -n "$changed" ] && [ "$root" != / ] && [ -e "$root/run/systemd/system" ]; then
	nsenter -t 1 -m -- systemctl restart containerd
	echo "restarted containerd"
fi
