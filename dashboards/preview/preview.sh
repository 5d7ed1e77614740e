#!/usr/bin/env bash
# Draws the dashboards from a real Prometheus into build/*.png, with parts of Grafana in headless Chromium.
#
#   preview.sh [PROMETHEUS [MINUTES [NAME=VALUE...]]]    http://localhost:9090, the last 15 minutes, variables of the dashboards
#
# Other names: END and SCRAPE, in seconds, and ROWS=open, which opens collapsed rows. scenes.py draws simulated fleets.
#
# Not part of the gate, because it needs 600 MB of packages. Parts that Grafana does not publish (the state timeline) are sketches.
set -euo pipefail
cd "$(dirname "$0")"

prometheus=${1:-http://localhost:9090}
minutes=${2:-15}
shift $(($# < 2 ? $# : 2))

[ -d node_modules ] || npm ci --no-audit --no-fund --ignore-scripts
npm run build --silent
for dashboard in fleet listener host; do
    python3 page.py "$dashboard" "$prometheus" "$minutes" "$@" >"build/$dashboard.html"
    # Sets the window to the height of the dashboard, because Chromium takes a picture of its window.
    height=$(python3 page.py "$dashboard" height "$@")
    chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --allow-file-access-from-files \
        --window-size="1632,$height" --virtual-time-budget=60000 --screenshot="build/$dashboard.png" \
        "file://$PWD/build/$dashboard.html" >/dev/null 2>&1
    echo "$PWD/build/$dashboard.png"
done
