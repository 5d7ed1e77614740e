#!/usr/bin/env bash
# The demo: starts listenq, Prometheus, Alertmanager, the shipped rules, and four servers, each in its own network namespace.
# Prints the URLs, and removes everything on Ctrl-C or after one hour.
# Needs root, cargo, and the Debian packages prometheus, prometheus-alertmanager, iproute2 and curl.
# LISTENQ and LISTENQ_LAB are paths of programs that are already built; DEMO_PORT is the first of three ports.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
seconds=3600
port=${DEMO_PORT:-19520}
listenq_at=127.0.0.1:$port prometheus_at=127.0.0.1:$((port + 1)) alertmanager_at=127.0.0.1:$((port + 2))

die() {
    echo "demo: $*" >&2
    exit 1
}

((EUID == 0)) || die "needs root: it makes network namespaces"
for tool in prometheus prometheus-alertmanager ip curl; do
    command -v "$tool" >/dev/null || die "$tool is not installed"
done
if [ -z "${LISTENQ:-}" ] || [ -z "${LISTENQ_LAB:-}" ]; then
    echo "Building ..."
    cd "$root"
    cargo build --release --quiet --locked --workspace --bins
    # Cargo resolves a relative path from the current directory.
    built=$(realpath "${CARGO_TARGET_DIR:-target}")/release
    LISTENQ=$built/listenq LISTENQ_LAB=$built/listenq-lab
fi

work=$(mktemp -d)
children=() namespaces=()

# Stops all processes that this script started and waits for them, then removes the namespaces and files.
clear_away() {
    trap '' INT TERM
    for pid in "${children[@]}"; do
        kill "$pid" 2>/dev/null || true
        # A stopped process ends only after it continues.
        kill -CONT "$pid" 2>/dev/null || true
    done
    # Without the redirection the shell would report each process that a signal ended.
    wait 2>/dev/null
    for ns in "${namespaces[@]}"; do
        "$LISTENQ_LAB" netns del "$ns" || true
    done
    rm -rf "$work"
}
trap clear_away EXIT
trap 'exit 0' INT TERM

# start NAME COMMAND...: runs in the background, with its own log.
start() {
    "${@:2}" >"$work/$1.log" 2>&1 </dev/null &
    children+=("$!")
}

# scene NAME LISTEN-FLAGS -- CONNECT-WORDS: a server and its clients. Sets `server` to the pid of the server.
scene() {
    local ns=lq-demo$$-$1 flags=()
    shift
    while [ "$1" != -- ]; do
        flags+=("$1")
        shift
    done
    shift
    "$LISTENQ_LAB" netns add "$ns"
    namespaces+=("$ns")
    start "$ns-server" ip netns exec "$ns" "$LISTENQ_LAB" listen 127.0.0.1:8080 --for "$seconds" "${flags[@]}"
    server=$!
    # The server must listen before its clients connect.
    for _ in $(seq 100); do
        if [ -s "$work/$ns-server.log" ]; then break; fi
        sleep 0.1
    done
    start "$ns-clients" ip netns exec "$ns" "$LISTENQ_LAB" connect "$1" 127.0.0.1:8080 "${@:2}"
}

# ready NAME URL
ready() {
    for _ in $(seq 300); do
        if curl -sf -o "$work/answer" "$2"; then return; fi
        sleep 0.1
    done
    tail -n 5 "$work/$1.log" >&2
    die "$1 does not answer at $2"
}

cat >"$work/prometheus.yml" <<YAML
global:
  scrape_interval: 5s
  evaluation_interval: 5s
rule_files:
  - $root/deploy/prometheus/alerts.yml
  - $root/deploy/prometheus/recording.yml
alerting:
  alertmanagers:
    - static_configs:
        - targets: ["$alertmanager_at"]
scrape_configs:
  - job_name: listenq
    static_configs:
      - targets: ["$listenq_at"]
YAML

start listenq "$LISTENQ" "--web.listen-address=$listenq_at"
start alertmanager prometheus-alertmanager "--config.file=$root/deploy/prometheus/alertmanager.yml" \
    "--storage.path=$work/alertmanager" "--web.listen-address=$alertmanager_at" --cluster.listen-address=
start prometheus prometheus "--config.file=$work/prometheus.yml" "--storage.tsdb.path=$work/prometheus" \
    "--web.listen-address=$prometheus_at"
ready listenq "http://$listenq_at/-/ready"
ready alertmanager "http://$alertmanager_at/-/ready"
ready prometheus "http://$prometheus_at/-/ready"

# Stopped: a server that serves clients for some seconds until a signal stops it, as a debugger or Ctrl-Z does.
scene stopped --backlog 64 --pace fast -- hammer --rate 20 --patience 3 --for "$seconds"
stopped=$server
# Slow: accepts ten of thirty connections a second.
scene slow --backlog 64 --pace rate:10 -- hammer --rate 30 --patience 60 --for "$seconds"
# Short queue: bursts of twenty, with room for nine.
scene short --backlog 8 --pace bursts:100 -- burst --count 20 --bursts 1000 --pause-ms 3000
# Healthy.
scene well --backlog 511 --pace fast -- hammer --rate 100 --for "$seconds"

# listenq must have seen the server accept before, because a server that has never accepted may still be starting.
sleep 5
kill -STOP "$stopped"

cat <<TEXT

  live page      http://$listenq_at/
  metrics        http://$listenq_at/metrics
  alerts         http://$prometheus_at/alerts   (the first within a minute)
  Alertmanager   http://$alertmanager_at/
  terminal       $LISTENQ explain --url http://$listenq_at
  the cause      kill -CONT $stopped   (continues the stopped server)

Everything ends with Ctrl-C, or in an hour.
TEXT
# `wait` returns on a signal; a sleep in the foreground would have to end first.
sleep "$seconds" &
children+=("$!")
wait "$!"
