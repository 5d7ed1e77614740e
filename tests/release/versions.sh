#!/usr/bin/env bash
# Tests listenq with the newest Prometheus, Alertmanager and node_exporter of Debian: the rules and their tests, the configuration, a real
# scrape with each scrape protocol, the evaluation of the rules, and the textfile collector. The gate tests the versions of Debian 12.
# Usage: tests/release/versions.sh [PROGRAM], by default target/debug/listenq, which it builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/release/tools.sh
source tests/release/tools.sh

debian curl python3
newest_stack
newest() { "${loader[@]}" "$root/usr/bin/$1" "${@:2}"; }
listenq=${1:-}
if [ -z "$listenq" ]; then
    cargo build --quiet --locked --bin listenq
    listenq=${CARGO_TARGET_DIR:-target}/debug/listenq
fi

work=$(mktemp -d)
pids=()
cleanup() {
    if ((${#pids[@]})); then kill "${pids[@]}" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT

echo "== versions"
for program in prometheus prometheus-alertmanager prometheus-node-exporter; do
    newest "$program" --version 2>&1 | sed -n 's/^\([a-z_]*, version [^ ]*\).*/\1/p'
done

echo "== files"
newest promtool check config --syntax-only deploy/prometheus/scrape.yml
newest promtool check metrics <tests/golden/metrics.txt
newest promtool check rules --lint=all --lint-fatal deploy/prometheus/alerts.yml deploy/prometheus/recording.yml
# Prometheus 3.5 computes 0.49999999999999994 where 2.42 computes 0.5. Prometheus 2.42 does not know this option.
mkdir -p "$work/tests/rules"
ln -s "$PWD/deploy" "$work/deploy"
for file in tests/rules/*.yml; do { echo "fuzzy_compare: true"; cat "$file"; } >"$work/$file"; done
# A range in Prometheus 3 excludes the sample at its left end, so an alert changes one evaluation earlier or later where a test has a
# sample at exactly that time. The tests are exact for the older version; the newer version may differ at these times only.
known='itself.yml 10m45s
overflow.yml 12m
overflow.yml 11m
owner.yml 15m'
differs=$(for file in "$work"/tests/rules/*.yml; do
    newest promtool test rules "$file" 2>&1 | sed -n "s|^ *expr: .*, time: \\([0-9hms]*\\),.*|${file##*/} \\1|p"
done)
[ "$differs" = "$known" ] || fail "the rule tests differ at: $differs"
newest amtool check-config deploy/prometheus/alertmanager.yml

echo "== textfile collector"
mkdir "$work/textfile"
"$listenq" metrics >"$work/textfile/listenq.prom" 2>/dev/null
"${loader[@]}" "$root/usr/bin/prometheus-node-exporter" --collector.disable-defaults --collector.textfile --collector.textfile.directory="$work/textfile" \
    --web.listen-address=127.0.0.1:29511 >"$work/node.log" 2>&1 &
pids+=($!)

# One job for each protocol that Prometheus 3 can request.
protocols=(PrometheusText0.0.4 PrometheusText1.0.0 OpenMetricsText0.0.1 OpenMetricsText1.0.0 PrometheusProto)
{
    echo "global: {scrape_interval: 1s, evaluation_interval: 1s}"
    echo "rule_files: [$PWD/deploy/prometheus/alerts.yml, $PWD/deploy/prometheus/recording.yml]"
    echo "scrape_configs:"
    echo "- {job_name: listenq, static_configs: [{targets: ['127.0.0.1:29512']}]}"
    for protocol in "${protocols[@]}"; do
        echo "- {job_name: $protocol, scrape_protocols: [$protocol], fallback_scrape_protocol: PrometheusText0.0.4, static_configs: [{targets: ['127.0.0.1:29512']}]}"
    done
    echo "- {job_name: node, static_configs: [{targets: ['127.0.0.1:29511']}]}"
} >"$work/prometheus.yml"
"$listenq" --web.listen-address=127.0.0.1:29512 --control.socket="$work/control" 2>"$work/listenq.log" &
pids+=($!)
"${loader[@]}" "$root/usr/bin/prometheus" --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --web.listen-address=127.0.0.1:29513 2>"$work/prometheus.log" &
pids+=($!)

# Prints the value of a query, or nothing if the query has no sample.
query() {
    curl --silent --max-time 5 --data-urlencode "query=$1" http://127.0.0.1:29513/api/v1/query |
        python3 -c 'import json, sys; [print(row["value"][1]) for row in json.load(sys.stdin)["data"]["result"]]' 2>/dev/null || true
}
within() {
    for _ in $(seq 120); do
        [ "$(query "$1")" != "$2" ] || return 0
        sleep 0.5
    done
    fail "$1 is $(query "$1"), not $2: $(tail -n 5 "$work/prometheus.log")"
}

echo "== scrapes"
jobs=$((${#protocols[@]} + 2))
within 'count(up == 1)' "$jobs"
within 'count(count by (job) (listenq_build_info))' "$jobs"
within 'min(listenq_feature_available{job="listenq", feature="sock_diag"})' 1
within 'node_textfile_scrape_error' 0
within 'count(listenq_accept_queue_limit{job="listenq"} > 0) > bool 0' 1

echo "== rules"
# Waits until the groups with an interval of at most a minute were evaluated, and prints the number of evaluated rules.
evaluated() {
    curl --silent http://127.0.0.1:29513/api/v1/rules | python3 -c '
import json, sys
groups = json.load(sys.stdin)["data"]["groups"]
rules = [(rule["name"], rule["health"], group["interval"]) for group in groups for rule in group["rules"]]
wrong = [rule for rule in rules if rule[1] == "err" or (rule[1] != "ok" and rule[2] <= 60)]
done = sum(health == "ok" for _, health, _ in rules)
print(f"{done} of {len(rules)} rules evaluated; not evaluated or wrong: {wrong}")
sys.exit(bool(wrong) or not rules)'
}
for _ in $(seq 180); do
    if evaluated >"$work/evaluated"; then break; fi
    sleep 0.5
done
evaluated || fail "rules"
if grep -E 'level=(ERROR|WARN)' "$work/prometheus.log"; then fail "Prometheus complains"; fi
echo "versions: all hold"
