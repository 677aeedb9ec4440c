#!/bin/bash
# The builder's main job, shown to a person: a program compiled in one stage, an image of it alone, unpacked and run.
#   demo-build.sh BUILDER_BINARY RUNTIME_BINARY
# The base is a Debian with a compiler, made once by debootstrap and kept in /var/cache/berth-demo.
set -euo pipefail
builder=$(readlink -f "${1:?usage: demo-build.sh BUILDER RUNTIME}") runtime=$(readlink -f "${2:?usage: demo-build.sh BUILDER RUNTIME}")
[[ $EUID = 0 ]] || { echo "demo: needs root (debootstrap)" >&2; exit 1; }

here=$(dirname "$(readlink -f "$0")")
. "$here/demo-lib.sh"
dir=$(mktemp -d /var/tmp/berth-demo.XXXXXX)
mkdir -p "$dir/bin"
printf '#!/bin/sh\nexec env BERTH_RUNTIME=%q %q --root %q "$@"\n' "$runtime" "$builder" "$dir/store" >"$dir/bin/berth-builder"
printf '#!/bin/sh\nexec %q --root %q "$@"\n' "$runtime" "$dir/state" >"$dir/bin/berth-runtime"
chmod 755 "$dir"/bin/*
export PATH=$dir/bin:$PATH
cd "$dir"
finish() {
	local status=$?
	trap - EXIT
	cd /
	rm -rf --one-file-system "$dir"
	ended "$status"
}
trap finish EXIT

printf '%sberth-builder: from a Dockerfile to a running container, without a daemon%s  (%s)\n' "$bold" "$off" "$("$builder" --version)"

title "A base: Debian with a compiler, made by debootstrap (kept for the next time)"
base=$("$here/debian-base") || fail "there is no base"
show "du -sh $base | cut -f1"

title "A program, and a Dockerfile with two stages: one compiles, one is the image"
mkdir -p app/src
cat >app/src/hello.c <<'END'
#include <stdio.h>
int main(int argc, char **argv) { printf("%s, %s!\n", VERSION, argc > 1 ? argv[1] : "nobody"); return 0; }
END
cat >app/Dockerfile <<'END'
# syntax=docker/dockerfile:1
FROM debian AS build
ARG VERSION=hello
WORKDIR /src
COPY src/ .
RUN --mount=type=cache,target=/root/.cache \
    gcc -O2 -static -DVERSION="\"$VERSION\"" -o /hello hello.c
RUN <<TEST
set -e
/hello world | grep world
TEST

FROM scratch
COPY --from=build /hello /hello
ENTRYPOINT ["/hello"]
CMD ["everybody"]
END
show 'cat app/Dockerfile'

title "build: the base is a folder under a name; nothing runs but in berth-runtime's containers"
TIMEFORMAT='%R seconds'
show "time berth-builder build -t hello --build-context debian=$base app"
expect 'named hello'

title "again: nothing is done twice"
show "time berth-builder build -t hello --build-context debian=$base app"
expect 'CACHED'
grep -q ' DONE ' <<<"$out" && fail "a step was done again"

title "another value for an ARG: only what depends on it"
show "berth-builder build -t ahoi --build-arg VERSION=ahoi --build-context debian=$base app"
expect ' DONE '
expect 'CACHED'

title "The image has the program and nothing else"
show 'berth-builder images'
show 'berth-builder history hello'

title "unpack: a bundle, which berth-runtime runs as it is"
show 'berth-builder unpack hello bundle'
show 'berth-runtime run --bundle bundle hello'
expect '^hello, everybody!$'

title "A mistake shows the line"
sed 's/^COPY src/COPYY src/' app/Dockerfile >app/wrong
show "berth-builder build -f app/wrong --build-context debian=$base app" 125
expect 'COPY\?'
expect '\^\^\^\^\^'
