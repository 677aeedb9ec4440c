#!/bin/sh
# conformance.sh DIR [SUITE] [OPTION...]: DIR/conformance, by default the suite `runtime` against DIR/berth-runtime ("ours").
set -eu
dir=$1
shift
case ${1:-} in runtime) shift ;; esac
runtimes=
for a; do case $a in --runtime | --runtime=* | --list | --help | -h) runtimes=given ;; esac; done
[ -n "$runtimes" ] || set -- --runtime "$dir/berth-runtime" "$@"
# "ours" is a word for the binary that was just built.
n=$#
while [ "$n" -gt 0 ]; do
	a=$1 n=$((n - 1))
	shift
	[ "$a" != ours ] || a=$dir/berth-runtime
	set -- "$@" "$a"
done
exec "$dir/conformance" runtime "$@"
