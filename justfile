# Every command a developer types. `just` lists them.

triple := "x86_64-unknown-linux-gnu"
debug := justfile_directory() / "target" / triple / "debug"
release := justfile_directory() / "target" / triple / "release"
dist := justfile_directory() / "target/dist"
max_runtime_bytes := "3000000"
max_builder_bytes := "12000000"
max_init_bytes := "1500000"
max_shim_bytes := "3000000"
# A release aborts on a panic and needs no tables for unwinding; the standard library's own stay in it.
release_config := "--config 'target." + triple + ".rustflags=[\"-Cforce-unwind-tables=no\"]'"
release_build := "cargo build --release -p berth-runtime " + release_config

# Which commit `--version` names.
commit := "BERTH_COMMIT=$(git describe --always --dirty 2>/dev/null || echo unknown)"

# list the recipes
default:
    @just --list --unsorted

# format, lints, unit tests and docs: quick, needs no rights, the loop to live in
check: fmt-check lint hygiene
    cargo test --quiet
    RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --workspace

# all tests that this machine can run (as root); says what was skipped and why, ends with a summary
test:
    tests/run host

# the same and what is too slow for every commit: programs that are downloaded, the package, a minute for each fuzz target, and all suites again in the
# VM with unified cgroup v2, systemd, an unprivileged user, and the clients
test-all: deb
    BERTH_TEST_STAGES="rust conformance demo clients faults programs package fuzz" tests/run host vm

# end-to-end tests of the real binary that this user may run, e.g. `just e2e rootfs`
e2e *FILTER:
    cargo build --quiet -p berth-runtime
    BERTH_RUNTIME={{debug}}/berth-runtime cargo nextest run -p tests --no-fail-fast {{FILTER}}

# hold a runtime to the OCI runtime spec, case by case: `just conformance --runtime ours --runtime /usr/sbin/runc`; without --runtime: ours;
# `just conformance builder --builder ours --builder buildah`: builders, to the Dockerfile reference
[positional-arguments]
conformance *ARGS:
    @cargo build --quiet -p berth-runtime -p berth-builder -p conformance
    @tests/conformance.sh {{debug}} "$@"

# drive docker, podman and ctr (Debian's packages) with ours and with runc, and print the matrix
clients *ARGS: dist
    tests/clients/run {{ARGS}}

# docs/compatibility.md anew: every client, here, in today's Debian (`just peers`) and in the VM
compatibility: dist
    tests/clients/all {{dist}}

# nginx, redis, PostgreSQL, a registry, node, python and a program under every limit: built, run and supervised
programs *ARGS: dist
    tests/programs/run --bin {{dist}} {{ARGS}}

# the Debian package on a fresh Debian: installed, the README's tour pasted, removed
package: deb
    tests/package/run

# are dependencies within their budget and used, unsafe code in its place, links alive?
hygiene:
    tests/hygiene

# kill, stop and restart whatever supervises containers, in every state, and print what became of them
faults *ARGS: dist
    tests/faults/run {{ARGS}}

# run a command as root in a throw-away VM with unified cgroup v2: `just vm --systemd -- systemctl status`
vm +CMD:
    tests/vm/berth-vm {{CMD}}

# everything beside the peers in one run, then docs/performance.md with its charts; `just bench quick`: 3 minutes
bench SPEED="full": dist
    tests/bench/all {{dist}} {{SPEED}}

# ours, crun, runc and the kernel's floor side by side: `just bench-runtime --only run,cold --n 50`
bench-runtime *ARGS: dist
    tests/bench/runtime/bench-runtime --goals ours --runtime ours={{dist}}/berth-runtime {{ if path_exists("/var/cache/berth-peers/bin/crun") == "true" { "--runtime crun=/var/cache/berth-peers/bin/crun --runtime runc=/var/cache/berth-peers/bin/runc" } else { "--runtime crun=$(command -v crun) --runtime runc=$(command -v runc)" } }} {{ARGS}}

# ours, buildah, skopeo, docker and the floor side by side: `just bench-images --tools floor,berth --scale 0.1`
bench-images *ARGS: dist
    @mkdir -p target/bench-images
    sed 's|BUILDER|{{dist}}/berth-builder|; s|RUNTIME=RUNTIME|RUNTIME={{dist}}/berth-runtime|' tests/bench/builder/berth.json >target/bench-images/berth.json
    tests/bench/builder/bench.py --work target/bench-images/work --tool-json target/bench-images/berth.json {{ARGS}}

# fetch today's crun, runc and other peers from Debian sid into /var/cache/berth-peers, for `just bench`
peers:
    tests/bench/peers

# the main jobs on real input: a busybox container from `spec` to `delete`; a program from its Dockerfile to its container
demo: dist
    tests/demo.sh {{dist}}/berth-runtime
    tests/demo-build.sh {{dist}}/berth-builder {{dist}}/berth-runtime

# A file that was written in small pieces, as strip does, lies in the page cache in small pieces, and is mapped page by page: a tenth of a
# short verb's time. So it is copied.
[private]
strip +NAMES:
    @mkdir -p {{dist}}
    @for name in {{NAMES}}; do \
        strip -o {{dist}}/$name.stripped {{release}}/$name && install -m 755 {{dist}}/$name.stripped {{dist}}/$name.new \
        && rm {{dist}}/$name.stripped && mv {{dist}}/$name.new {{dist}}/$name || exit 1; \
    done

# finished release binaries in target/dist: static, non-PIE, stripped, size checked
dist:
    {{commit}} BERTH_LINK_MAP={{release}}/berth-runtime.map {{release_build}}
    @mkdir -p {{dist}}
    @just --justfile {{justfile()}} strip berth-runtime
    @tests/dist-check.sh {{dist}}/berth-runtime {{max_runtime_bytes}}
    @tests/dist-check.sh --order {{release}}/berth-runtime.map runtime/symbols.order runtime/layout.ld
    {{commit}} cargo build --release -p berth-builder {{release_config}}
    @just --justfile {{justfile()}} strip berth-builder
    @tests/dist-check.sh {{dist}}/berth-builder {{max_builder_bytes}}
    {{commit}} cargo build --release -p berth-shim {{release_config}}
    @just --justfile {{justfile()}} strip berth-init berth-shim
    @ln -sf berth-shim {{dist}}/containerd-shim-berth-v2 && ln -sf berth-shim {{dist}}/berth-conmon
    @tests/dist-check.sh {{dist}}/berth-init {{max_init_bytes}}
    @tests/dist-check.sh {{dist}}/berth-shim {{max_shim_bytes}}

# shell completions (bash, zsh, fish) and man pages in target/dist/
man:
    rm -rf {{dist}}/man {{dist}}/completions
    cargo run --quiet -p package -- {{dist}}

# make the lists of functions and constants that the release binary keeps side by side anew (after larger changes; see runtime/build.rs)
order:
    BERTH_LINK_MAP={{release}}/berth-runtime.map {{release_build}}
    tests/bench/runtime/order {{release}}/berth-runtime {{release}}/berth-runtime.map runtime

# install into PREFIX (default /usr/local): programs, manual pages, completions, systemd's unit, manifests; DESTDIR before it, for packagers
install PREFIX="/usr/local" DESTDIR="": dist man
    crates/package/tree {{dist}} "{{DESTDIR}}" "{{ trim_start_match(PREFIX, "PREFIX=") }}"

# a Debian package of the same in target/dist/
deb: dist man
    crates/package/deb {{dist}} {{dist}}

# every fuzz target for a minute (or SECONDS) with new random inputs; NAME: those with this in their name
fuzz-smoke SECONDS="60" NAME="":
    tests/fuzz {{SECONDS}} {{NAME}}

# fetch what the tests want and the build does not: peers from sid and the VM's image (minutes, once)
assets:
    tests/vm/berth-vm setup
    tests/bench/peers

# format the code
fmt:
    cargo fmt --all

# is the code formatted?
fmt-check:
    cargo fmt --all --check

# clippy over everything, warnings are errors
lint:
    cargo clippy --quiet --workspace --all-targets -- -D warnings

# licences, bans, duplicate crates and (where the advisory database can be had) advisories
deny *ARGS:
    @command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny
    cargo deny check {{ if ARGS == "" { "licenses bans sources" } else { ARGS } }}
