#!/usr/bin/env bash
# Generates the dashboards from their sources, and fails if the committed JSON differs or does not match Grafana's schema.
set -euo pipefail
cd "$(dirname "$0")"

export npm_config_loglevel=error npm_config_update_notifier=false
npm ci --no-audit --no-fund --prefer-offline
npx tsc
fresh=build/json
mkdir -p "$fresh"
node build/src/main.js "$fresh"
npx tsc -p tsconfig.typed.json
for dashboard in "$fresh"/*.json; do
    diff -u "$(basename "$dashboard")" "$dashboard" || {
        echo "dashboards/$(basename "$dashboard") is not what its source says: run 'npm run build' in dashboards/" >&2
        exit 1
    }
done
