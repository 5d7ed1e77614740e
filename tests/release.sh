#!/usr/bin/env bash
# What takes tools or time, run by hand before a release: fuzzing for minutes, the scenario
# run, the demo, the live benchmarks. The gate is tests/all.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-300}

command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz
for target in netlink_datagram netstat web_config; do
    mkdir -p "fuzz/corpus/$target"
    # cargo-fuzz wants a nightly compiler's flags; the stable one has them too, if asked like this.
    RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- -max_total_time="$seconds"
done
cargo test --locked --test scenarios -- --nocapture
tests/demo.sh
cargo bench --bench live
cargo bench --bench scan
