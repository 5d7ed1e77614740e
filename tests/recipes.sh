#!/usr/bin/env bash
# Tries the files of docs/recipes.md with tests/recipes.py, and its ScaledObject against the schema of KEDA. Uses what tests/chart.sh
# installed.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

target/chart/venv/bin/python tests/recipes.py "$root"
cp "$root/scaledobject.json" target/chart/
cp tests/chart/keda.mjs target/chart/
node target/chart/keda.mjs target/chart/scaledobject.json
