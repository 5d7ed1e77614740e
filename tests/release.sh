#!/usr/bin/env bash
# What takes tools or time, run by hand before a release: dependencies, packages, image, reproducibility, fuzzing for
# minutes, the demo, a minute under fire, 50,000 listeners at once, the soak, what a large fleet costs Prometheus, and performance next to others.
# The gate is tests/all.sh. What it said last is summed up in docs/release-checks.md.
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
tests/demo.sh
FIRE_SECONDS=60 cargo test --locked --test fire -- --nocapture
cargo test --locked --test faults --test stop_and_go -- --ignored --nocapture
SOAK_SECONDS=${SOAK_SECONDS:-1200} cargo test --locked --release --test soak -- --nocapture
benches/fleet.py
# The live benchmarks, and others beside them: writes docs/performance.md. Wants a quiet machine.
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    iproute2 netdata-core prometheus-node-exporter python3-matplotlib ruby-raindrops >/dev/null
tests/release/performance.py
