#!/usr/bin/env bash
# The gate: installs the tools that the checks need (root on Debian) and runs every check. CI runs this script.
# Checks that need additional tools or much time are in tests/release.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

install() {
    local missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then return; fi
    if ((EUID != 0)); then
        echo "missing packages, and not root to install them: ${missing[*]}" >&2
        exit 1
    fi
    # Packages that bring services must not start them here.
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The packages are installed, and the chart is checked, while the compiler runs, which needs only the linker.
step "packages and chart begin"
install gcc
rustup component add rustfmt clippy >/dev/null 2>&1 || true
packages() {
    install apache2-utils chromium curl docker-compose faketime gunicorn gzip iproute2 libcap2-bin nftables nginx-light openssl php-fpm procps prometheus prometheus-alertmanager prometheus-node-exporter python3 python3-pip python3-venv redis-server runc shellcheck strace systemd util-linux valgrind
    command -v npm >/dev/null || install nodejs npm
    local runner
    runner=$(sed -n '/^name = "gungraun"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)
    if [ "$(gungraun-runner --version 2>/dev/null | grep -o '[0-9.]*$')" != "$runner" ]; then
        cargo install --quiet --locked gungraun-runner --version "$runner"
    fi
    # Runs before the tests, which render the chart with the tools that this installs.
    tests/chart.sh
}
mkdir -p target
packages >target/packages.log 2>&1 &
packages=$!
# Waits for background jobs after a failure too: a half installed package would block the next run.
trap 'wait' EXIT

step "format"
cargo fmt --all --check
cargo fmt --check --manifest-path fuzz/Cargo.toml
# A change of our dependencies changes the lock file of the fuzz targets too.
cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null

step "build"
cargo test --workspace --locked --no-run
cargo test --workspace --locked --test diagnosis --test scenarios --test servers --no-run

step "packages and chart end"
wait "$packages" || packages=failed
cat target/packages.log
[ "$packages" != failed ]

step "tests"
# Test files that mostly wait run one after the other, in parallel with the other tests. Those that use the least CPU time come first,
# while tests/abuse runs.
waiting=(waits terminal http causes unix page attribution_lab containers units web_config cause_cost dashboards faults recommended_limit)
run_waiting() {
    local test
    for test in "${waiting[@]}"; do
        cargo test --package listenq --locked --test "$test" || return 1
    done
}
# The names of all other test files that `cargo test` runs.
others() {
    cargo metadata --no-deps --locked --format-version 1 | python3 -c '
import json, sys
package = next(p for p in json.load(sys.stdin)["packages"] if p["name"] == "listenq")
tests = {t["name"] for t in package["targets"] if t["kind"] == ["test"] and t["test"]}
waiting = set(sys.argv[1:])
assert waiting < tests, waiting - tests
print(*(f"--test={test}" for test in sorted(tests - waiting)))
' "${waiting[@]}"
}
run_waiting >target/waiting.log 2>&1 &
waiting_tests=$!
others=$(others)
# shellcheck disable=SC2086 # one argument for each file
cargo test --package listenq --locked --lib --bins $others
cargo test --package listenq-lab --locked
cargo test --workspace --locked --doc
wait "$waiting_tests" || waiting_tests=failed
cat target/waiting.log
[ "$waiting_tests" != failed ]

step "diagnosis and servers"
# Both of these mostly wait.
cargo test --workspace --locked --test servers -- --nocapture >target/servers.log 2>&1 &
servers=$!
cargo test --workspace --locked --test diagnosis -- --test-threads 5
wait "$servers" || servers=failed
cat target/servers.log
[ "$servers" != failed ]

# Waits for most of its four and a half minutes and tolerates a busy machine, so the next steps run at the same time.
step "scenarios begin"
# The tests of the scenarios wait, so they run side by side.
cargo test --workspace --locked --test scenarios -- --nocapture --test-threads 4 >target/scenarios.log 2>&1 &
# The trap waits for the scenarios after a failure too: they remove their namespaces themselves.
scenarios=$!

step "deploy files"
promtool check config --syntax-only deploy/prometheus/scrape.yml
promtool check metrics <tests/golden/metrics.txt
promtool check rules --lint=all --lint-fatal deploy/prometheus/alerts.yml deploy/prometheus/recording.yml
promtool test rules tests/rules/*.yml
amtool check-config deploy/prometheus/alertmanager.yml
tests/mixin.sh
tests/recipes.sh
tests/unit.sh
tests/compose.sh
tests/workflows.sh

step "dashboards"
dashboards/check.sh

# The longest part of the build of the benchmarks uses one processor.
step "lint begins"
lint() {
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo clippy --workspace --test diagnosis --test scenarios --test servers --test soak --locked -- -D warnings
    cargo clippy --manifest-path fuzz/Cargo.toml --locked -- -D warnings
    shellcheck tests/*.sh deploy/demo/*.sh dashboards/*.sh dashboards/preview/*.sh .ci/run
    shellcheck -x deploy/*.sh tests/release/*.sh deploy/packages/debian/scripts/*
    shellcheck -s sh deploy/packages/rpm/p*
}
lint >target/lint.log 2>&1 &
lint=$!

step "instruction counts"
cargo bench --locked --bench instructions

step "lint ends"
wait "$lint" || lint=failed
cat target/lint.log
[ "$lint" != failed ]

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

step "scenarios end"
wait "$scenarios" || scenarios=failed
cat target/scenarios.log
[ "$scenarios" != failed ]

step "done"
