#!/bin/sh
# Is this release binary what we promise: one static, non-PIE program of at most MAX bytes that runs?
#   dist-check.sh BINARY MAX_BYTES
set -eu
size=$(stat -c %s "$1")
readelf -h "$1" | grep -q 'Type: *EXEC' || { echo "$1: not a non-PIE executable" >&2; exit 1; }
if readelf -l "$1" | grep -q INTERP; then echo "$1: not static" >&2; exit 1; fi
if readelf -S "$1" | grep -q '\.symtab'; then echo "$1: not stripped" >&2; exit 1; fi
[ "$size" -le "$2" ] || { echo "$1: $size bytes, more than the $2 that we allow" >&2; exit 1; }
"$1" --version >/dev/null || { echo "$1: --version fails" >&2; exit 1; }
echo "$1: $size bytes, static, non-PIE, stripped"
