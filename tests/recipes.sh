#!/usr/bin/env bash
# Tests the files in docs/recipes.md with tests/recipes.py, and the ScaledObject against the schema of KEDA. Uses the tools that
# tests/chart.sh installed.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

target/chart/venv/bin/python tests/recipes.py "$root"
cp "$root/scaledobject.json" target/chart/
cp tests/chart/keda.mjs target/chart/
node target/chart/keda.mjs target/chart/scaledobject.json
