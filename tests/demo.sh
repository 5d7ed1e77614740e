#!/usr/bin/env bash
# Runs the demo until Alertmanager has the alerts about its servers, stops it with Ctrl-C, and checks that no process or file remains.
# Needs python3 and the programs that the demo needs; passes LISTENQ, LISTENQ_LAB and DEMO_PORT to the demo.
set -euo pipefail
cd "$(dirname "$0")/.."
export DEMO_PORT=${DEMO_PORT:-19520}
alerts_at=http://127.0.0.1:$((DEMO_PORT + 2))/api/v2/alerts

said=$(mktemp)
# The demo creates all its files below this directory.
TMPDIR=$(mktemp -d)
export TMPDIR
# A separate session, to find leftover processes. A shell ignores SIGINT in its background processes, hence --default-signal.
setsid env --default-signal=INT deploy/demo/demo.sh >"$said" 2>&1 &
demo=$!
trap 'kill -INT -- "-$demo" 2>/dev/null || true; rm -rf "$TMPDIR" "$said"' EXIT

die() {
    cat "$said" >&2
    echo "$*" >&2
    exit 1
}

# One line for each alert about a server of the demo.
alerts() {
    curl -sf "$alerts_at" | python3 -c '
import json, sys
for alert in json.load(sys.stdin):
    labels = alert["labels"]
    if labels.get("netns", "").startswith(sys.argv[1]):
        print(labels["alertname"], labels["netns"].removeprefix(sys.argv[1]), "|", alert["annotations"]["summary"])
' "lq-demo$demo-" 2>/dev/null || true
}

# The alert about the stopped server names the cause.
complete() {
    [[ $found == *\ stopped\ \|*accepts\ no\ clients:\ stopped\ by\ a\ signal* && $found == *\ slow\ \|* && $found == *\ short\ \|* ]]
}

# One alert for each server in trouble, and none for the healthy one.
for _ in $(seq 600); do
    found=$(alerts)
    if complete; then break; fi
    kill -0 "$demo" 2>/dev/null || die "the demo ended by itself"
    sleep 0.5
done
cat "$said"
echo "alerts after $SECONDS s:"
sort <<<"$found"
complete || die "not all alerts came"
[[ $found != *\ well\ \|* ]] || die "an alert about the server that is well"

before=$(wc -c <"$said")
kill -INT -- "-$demo"
wait "$demo" || die "the demo did not end well"
[ "$(wc -c <"$said")" = "$before" ] || die "the demo was not quiet when it ended"
left=$(pgrep -s "$demo" -a || true)
[ -z "$left" ] || die "still running: $left"
left=$(ip netns list | grep "^lq-demo$demo-" || true)
[ -z "$left" ] || die "still there: $left"
left=$(ls -A "$TMPDIR")
[ -z "$left" ] || die "still there: $left"
echo "nothing is left"
