#!/usr/bin/env bash
# What takes tools or time, run by hand before a release: dependencies, packages, image, reproducibility, fuzzing for
# minutes, the demo, the soak, what a large fleet costs Prometheus, the live benchmarks. The gate is tests/all.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-300}

# Advisories need their database: "cargo deny check advisories" where there is a network for it.
command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny
cargo deny check licenses bans sources

tests/release/packages.sh
tests/release/image.sh
tests/release/reproducible.sh

command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz
for target in cgroup fold kubelet netlink_datagram netstat proc_tcp web_config; do
    mkdir -p "fuzz/corpus/$target"
    # cargo-fuzz wants a nightly compiler's flags; the stable one has them too, if asked like this.
    RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- -max_total_time="$seconds"
done
tests/chart.sh
target/chart/venv/bin/python tests/chart/release.py target/chart/release
tests/demo.sh
cargo test --locked --test faults -- --ignored --nocapture
SOAK_SECONDS=${SOAK_SECONDS:-1200} cargo test --locked --release --test soak -- --nocapture
benches/fleet.py
# The live benchmarks, and others beside them: writes docs/performance.md. Wants a quiet machine.
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    iproute2 netdata-core prometheus-node-exporter python3-matplotlib ruby-raindrops >/dev/null
tests/release/performance.py
