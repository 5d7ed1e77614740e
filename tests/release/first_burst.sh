#!/usr/bin/env bash
# Checks with Prometheus 3 that no first burst is lost. 1,000 fresh listeners of ten namespaces refuse one connection each between two scrapes.
# Prometheus, with zero injection of start timestamps, must count each of them, and nothing more after a restart of listenq.
# Usage: tests/release/first_burst.sh [PROGRAM], by default target/debug/listenq, which it builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/release/tools.sh
source tests/release/tools.sh

debian curl iproute2 python3
newest_stack
listenq=${1:-}
if [ -z "$listenq" ]; then
    cargo build --quiet --locked --bin listenq
    listenq=${CARGO_TARGET_DIR:-target}/debug/listenq
fi

work=$(mktemp -d)
# listenq admits 150 new names in trouble per source at once, so the listeners belong to ten namespaces.
namespaces=()
for n in $(seq 0 9); do namespaces+=("first-burst-$$-$n"); done
pids=()
cleanup() {
    if ((${#pids[@]})); then kill "${pids[@]}" 2>/dev/null || true; wait || true; fi
    for netns in "${namespaces[@]}"; do ip netns del "$netns" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
for netns in "${namespaces[@]}"; do
    ip netns add "$netns"
    ip netns exec "$netns" ip link set lo up
done

serve() {
    "$listenq" --web.listen-address=127.0.0.1:29521 --control.socket="$work/control" --listener.max=2000 2>"$work/listenq.log" &
    daemon=$!
    pids+=("$daemon")
}
cat >"$work/prometheus.yml" <<'YAML'
global: {scrape_interval: 5s}
scrape_configs:
- {job_name: listenq, static_configs: [{targets: ['127.0.0.1:29521']}]}
YAML
serve
"${loader[@]}" "$root/usr/bin/prometheus" --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" \
    --enable-feature=created-timestamp-zero-ingestion,native-histograms --web.listen-address=127.0.0.1:29522 2>"$work/prometheus.log" &
pids+=($!)

overflows='listenq_listener_overflows_total{netns=~"first-burst.*"}'
lengths='listenq_accept_queue_sampled_length{netns=~"first-burst.*"}'
# Prints the value of a query, or nothing if the query has no sample.
query() {
    curl --silent --max-time 10 --data-urlencode "query=$1" http://127.0.0.1:29522/api/v1/query |
        python3 -c 'import json, sys; [print(row["value"][1]) for row in json.load(sys.stdin)["data"]["result"]]' 2>/dev/null || true
}
within() {
    for _ in $(seq 60); do
        [ "$(query "$1")" != "$2" ] || return 0
        sleep 1
    done
    fail "$1 is $(query "$1"), not $2: $(tail -n 5 "$work/prometheus.log")"
}
# Fails unless the sum of the increases is 1,000 ± 5 %.
assert_sum() {
    local sum
    sum=$(query "sum(increase(${overflows}[10m]))")
    echo "sum of the increases $1: $sum"
    python3 -c 'import sys; sys.exit(not 950 <= float(sys.argv[1] or 0) <= 1050)' "$sum" || fail "the sum of the increases is $sum, not 1,000"
}

within 'up' 1
# Each listener holds two connections and refuses the third.
burst='
import socket, time
def client(to):
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(to)
    return one
listeners, held = [], []
for port in range(20000, 20100):
    listener = socket.socket()
    listener.bind(("127.0.0.1", port))
    listener.listen(1)
    listeners.append(listener)
time.sleep(1)
for port in range(20000, 20100):
    held += [client(("127.0.0.1", port)) for _ in range(2)]
    client(("127.0.0.1", port)).close()
time.sleep(600)'
for netns in "${namespaces[@]}"; do
    ip netns exec "$netns" python3 -c "$burst" &
    pids+=($!)
done
within "count($overflows == 1)" 1000
sleep 120
echo "listeners with an increase: $(query "count(increase(${overflows}[10m]) > 0)")"
within "count(increase(${overflows}[10m]) > 0)" 1000
assert_sum "before the restart"
within "count(histogram_count($lengths) > 0)" 1000

kill "$daemon"
wait "$daemon" 2>/dev/null || true
serve
within "count($overflows == 0)" 1000
sleep 30
within "count(increase(${overflows}[10m]) > 0)" 1000
assert_sum "after the restart"
echo "cost of a scrape: $(query 'avg_over_time(scrape_duration_seconds[5m])') s, $(query 'scrape_samples_scraped') samples"
