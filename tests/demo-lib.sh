# What the demos have in common: commands are printed as one would type them, then run. Sourced; `step` counts titles.
# shellcheck shell=bash
if [[ -t 1 ]]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' off=$'\e[0m'; else bold='' dim='' green='' red='' off=''; fi
step=0
ended() { # ended STATUS: the demo's last word
	if [[ $1 = 0 ]]; then
		printf '\n%sDemo done: %d steps, nothing left behind.%s\n' "$green$bold" "$step" "$off"
	else
		printf '\n%sDemo FAILED in step %d.%s\n' "$red$bold" "$step" "$off" >&2
	fi
	exit "$1"
}
fail() { printf '%sdemo: %s%s\n' "$red" "$*" "$off" >&2; exit 1; }

title() { step=$((step + 1)); printf '\n%s%d. %s%s\n' "$bold" "$step" "$*" "$off"; }
show() { # show COMMAND [STATUS]: print it, run it, show its output indented; the output stays in $out
	local status=0
	printf '%s$ %s%s\n' "$dim" "$1" "$off"
	out=$(eval "$1" 2>&1 </dev/null) || status=$?
	if [[ -n $out ]]; then printf '%s\n' "$out" | sed 's/^/    /'; fi
	[[ $status = "${2:-0}" ]] || fail "this command ended with status $status"
}
refuse() { # refuse COMMAND: one that has to fail
	local status=0
	printf '%s$ %s%s\n' "$dim" "$1" "$off"
	out=$(eval "$1" 2>&1 </dev/null) || status=$?
	printf '%s\n' "$out" | sed 's/^/    /'
	[[ $status != 0 ]] || fail "this command should have been refused"
}
expect() { grep -qE -- "$1" <<<"$out" || fail "expected to see: $1"; }
