#!/bin/sh
# Is this release binary what we promise: one static, non-PIE program of at most MAX bytes that runs?
#   dist-check.sh BINARY MAX_BYTES
#   dist-check.sh --order LINK_MAP FUNCTIONS LAYOUT    are the functions and constants of the two lists, which are to keep them side by side,
#                                                      still those of the program?
set -eu
if [ "$1" = --order ]; then
	all=$(grep -c . "$3") known=$(awk 'NR == FNR { wanted[$1]; next } $NF in wanted { delete wanted[$NF]; n++ } END { print n + 0 }' "$3" "$2")
	echo "$3: $known of $all functions are in the program"
	wanted=$(grep -c '^ *\*' "$4") found=$(awk '$5 ~ /^\./ { daily = $5 == ".rodata.daily"; next } daily' "$2" | grep -c ':(')
	echo "$4: $found constants for $wanted names are in the program"
	# Each one that is not costs memory and page faults in every call: see docs/speed.md.
	# Not an error: another compiler gives them other names.
	[ $((known * 10)) -ge $((all * 9)) ] && [ $((found * 10)) -ge $((wanted * 9)) ] \
		|| echo "$3, $4: warning: out of date, which makes every call slower and larger: just order" >&2
	exit 0
fi
size=$(stat -c %s "$1")
readelf -h "$1" | grep -q 'Type: *EXEC' || { echo "$1: not a non-PIE executable" >&2; exit 1; }
if readelf -l "$1" | grep -q INTERP; then echo "$1: not static" >&2; exit 1; fi
if readelf -S "$1" | grep -q '\.symtab'; then echo "$1: not stripped" >&2; exit 1; fi
[ "$size" -le "$2" ] || { echo "$1: $size bytes, more than the $2 that we allow" >&2; exit 1; }
"$1" --version >/dev/null || { echo "$1: --version fails" >&2; exit 1; }
echo "$1: $size bytes, static, non-PIE, stripped"
