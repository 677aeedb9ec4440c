#!/bin/sh
# conformance.sh DIR [SUITE] [OPTION...]: DIR/conformance, by default the suite `runtime` against DIR/berth-runtime ("ours"); the
# suite `builder` against DIR/berth-builder.
set -eu
dir=$1
shift
suite=runtime option=--runtime
case ${1:-} in runtime) shift ;; builder) suite=builder option=--builder; shift ;; esac
given=
for a; do case $a in --runtime | --runtime=* | --builder | --builder=* | --list | --help | -h) given=yes ;; esac; done
if [ "$suite" = builder ]; then ours=berth=$dir/berth-builder; else ours=$dir/berth-runtime; fi
[ -n "$given" ] || set -- "$option" "$ours" "$@"
# "ours" is a word for the binary that was just built.
n=$#
while [ "$n" -gt 0 ]; do
	a=$1 n=$((n - 1))
	shift
	[ "$a" != ours ] || a=$ours
	set -- "$@" "$a"
done
export BERTH_RUNTIME="$dir/berth-runtime"
exec "$dir/conformance" "$suite" "$@"
