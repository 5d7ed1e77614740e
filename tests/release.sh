#!/usr/bin/env bash
# What takes tools or time, run by hand before a release: dependencies, fuzzing for minutes, the
# scenario run, the soak, the live benchmarks. The gate is tests/all.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-300}

# Advisories need their database: "cargo deny check advisories" where there is a network for it.
command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny
cargo deny check licenses bans sources

command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz
for target in cgroup fold kubelet netlink_datagram netstat proc_tcp web_config; do
    mkdir -p "fuzz/corpus/$target"
    # cargo-fuzz wants a nightly compiler's flags; the stable one has them too, if asked like this.
    RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- -max_total_time="$seconds"
done
cargo test --locked --test faults -- --ignored --nocapture
cargo test --locked --test scenarios -- --nocapture
SOAK_SECONDS=${SOAK_SECONDS:-1200} cargo test --locked --release --test soak -- --nocapture
cargo bench --bench live
cargo bench --bench scan
