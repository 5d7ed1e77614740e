#!/usr/bin/env bash
# Checks that need additional tools or much time, run by hand before a release: dependencies, packages, image, Ansible role, reproducibility,
# other kernels, newer versions of Prometheus,
# fuzzing, the demo, the matrix of real servers, one minute of load, 50,000 listeners at once, the soak, the cost of a large fleet, and performance.
# The gate is tests/all.sh. docs/release-checks.md summarizes the last run.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-300}

# Advisories: a checkout of https://github.com/RustSec/advisory-db, as the first argument or in RUSTSEC_DB.
database=${1:-${RUSTSEC_DB:-}}
if [ -n "$database" ]; then
    tests/release/advisories.py "$database" Cargo.lock fuzz/Cargo.lock
elif [ "${RUSTSEC_SKIP:-}" = 1 ]; then
    echo "ADVISORIES ARE NOT CHECKED: RUSTSEC_SKIP=1" >&2
else
    echo "ADVISORIES ARE NOT CHECKED: give a checkout of the RustSec database as the first argument or in RUSTSEC_DB, or set RUSTSEC_SKIP=1" >&2
    exit 1
fi
command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny
cargo deny check licenses bans sources

tests/release/packages.sh
tests/release/image.sh
tests/release/ansible.sh
tests/release/reproducible.sh
tests/release/versions.sh
tests/release/first_burst.sh
tests/release/kernels.sh
tests/release/kernels.sh pods

command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz
for target in cgroup fold kubelet netlink_datagram netstat proc_tcp web_config; do
    mkdir -p "fuzz/corpus/$target"
    # cargo-fuzz needs flags of a nightly compiler; this variable enables them in the stable one.
    RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- -max_total_time="$seconds"
done
tests/demo.sh
tests/release/servers.sh
# The attacks on the endpoint, with an optimized build and for longer, and the attacks on memory under a memory limit of the kernel.
tests/release/hostile.sh
ABUSE_SECONDS=${ABUSE_SECONDS:-20} cargo test --locked --release --test abuse -- --nocapture --test-threads 1
# Local users who create very many namespaces, listeners and descriptors.
NEIGHBOURS=1400 cargo test --locked --release --test neighbours -- --nocapture
for count in 30000 45000; do MANY_LISTENERS=$count cargo test --locked --release --test many -- --nocapture very_many; done
OWNER_DESCRIPTORS=200000 cargo test --locked --release --test owner_lookup -- --nocapture very_many
FIRE_SECONDS=60 cargo test --locked --test fire -- --nocapture
ATTRIBUTION_ROUNDS=5 cargo test --locked --test attribution_lab -- --nocapture
cargo test --locked --test cause_cost --test faults --test stop_and_go -- --ignored --nocapture
SOAK_SECONDS=${SOAK_SECONDS:-1200} cargo test --locked --release --test soak -- --nocapture
# One stalled service on 1,000 hosts; the gate has 240 hosts.
FLEET_HOSTS=1000 cargo test --locked --test scenarios -- --nocapture a_stalled_service_on_many_hosts
benches/fleet.py
benches/fleet.py templates 100 50 --at-most=2
# The live benchmarks of listenq and other tools: writes docs/performance.md. Needs an idle machine.
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    iproute2 netdata-core prometheus-node-exporter python3-matplotlib ruby-raindrops >/dev/null
tests/release/performance.py
