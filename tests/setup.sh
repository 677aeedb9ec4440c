#!/bin/sh
# Makes a fresh Debian machine ready to build, test and show Berth, then runs the command given to it:
#
#   sh tests/setup.sh just demo
#   sh tests/setup.sh just test
#
# It installs what is missing and leaves alone what is there: Debian packages (as root, or through sudo), a Rust
# toolchain (rustup), and `just`. Whatever cannot be had and is only wanted for a part of the tests is named and skipped.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
die() { say "error: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

case ${1:-} in -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 0 ;; esac
have apt-get || die "this script knows Debian and its relatives only; elsewhere install the packages named in it by hand"
as_root=
if [ "$(id -u)" != 0 ]; then
	have sudo || die "needs root to install packages (and so do the tests): run it as root"
	as_root=sudo
fi
export DEBIAN_FRONTEND=noninteractive

# program:package, where they differ. The first list is needed, the second one serves some tests.
needed='cc:gcc make git curl python3 busybox:busybox-static jq ip:iproute2 ps:procps unshare:util-linux /etc/ssl/certs/ca-certificates.crt:ca-certificates /usr/include/stdlib.h:libc6-dev'
wanted='runc crun strace docker-registry skopeo zstd pigz newuidmap:uidmap debootstrap dockerd:docker.io podman containerd iptables slirp4netns pasta:passt /usr/lib/python3/dist-packages/grpc/__init__.py:python3-grpcio'

missing() { # missing PROGRAM:PACKAGE...: the packages whose program is not there
	for pair; do
		case ${pair%%:*} in
		/*) [ -e "${pair%%:*}" ] || echo "${pair#*:}" ;;
		dockerd) [ -x /usr/sbin/dockerd ] || have dockerd || echo "${pair#*:}" ;;
		busybox) dpkg-query -W busybox-static >/dev/null 2>&1 || echo "${pair#*:}" ;;
		*) have "${pair%%:*}" || [ -x "/usr/sbin/${pair%%:*}" ] || echo "${pair#*:}" ;;
		esac
	done
}
install() { $as_root apt-get install -y -q --no-install-recommends "$@" >/dev/null; }

# shellcheck disable=SC2086
first=$(missing $needed) more=
[ -n "${BERTH_SETUP_MINIMAL:-}" ] || more=$(missing $wanted)
if [ -n "$first$more" ]; then
	say "apt-get update"
	$as_root apt-get update -q >/dev/null || say "warning: apt-get update failed; going on with the lists that are there"
fi
# Daemons must not start by themselves: the tests start their own, in namespaces of their own.
policy=/usr/sbin/policy-rc.d
if [ -n "$more" ] && [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
	$as_root chmod 755 $policy
	trap '$as_root rm -f $policy' EXIT
fi
if [ -n "$first" ]; then
	say "installing" $first
	# shellcheck disable=SC2086
	install $first
fi
for package in $more; do
	say "installing $package"
	install "$package" || say "warning: no package $package: the tests that want it will be skipped"
done
if [ -n "$more" ]; then $as_root rm -f $policy; trap - EXIT; fi

# Rust: whatever is there, if it is new enough, else rustup's stable.
PATH=$HOME/.cargo/bin:$PATH
export PATH
rust_is_new() { have cargo && [ "$(rustc --version | cut -d. -f2)" -ge "$(sed -n 's/^rust-version = "1\.\([0-9]*\)"/\1/p' Cargo.toml)" ]; }
if ! rust_is_new; then
	say "installing Rust (rustup, stable)"
	if ! have rustup; then
		curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y -q --profile minimal -c clippy,rustfmt --no-modify-path
	fi
	rustup toolchain install stable --profile minimal -c clippy,rustfmt >/dev/null
	rustup default stable >/dev/null
	rust_is_new || die "Rust $(rustc --version) is too old"
fi

# just: a package from Debian 13 on; a wheel on PyPI; a crate.
if ! have just; then
	say "installing just"
	install just 2>/dev/null ||
		{ have pip && pip install -q rust-just; } ||
		{ python3 -m venv "$HOME/.cache/berth-venv" && "$HOME/.cache/berth-venv/bin/pip" install -q rust-just &&
			mkdir -p "$HOME/.cargo/bin" && ln -sf "$HOME/.cache/berth-venv/bin/just" "$HOME/.cargo/bin/just"; } 2>/dev/null ||
		cargo install -q just --locked
	have just || { have pyenv && pyenv rehash; } || true
	have just || die "just was installed, but is not in PATH"
fi

[ $# -gt 0 ] || { say "ready: try 'just demo' or 'just test'"; exit 0; }
say "ready; now: $*"
exec "$@"
