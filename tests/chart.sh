#!/usr/bin/env bash
# Checks the Helm chart with tests/chart/check.py. The tools stay in target/chart; tests/chart/main.rs renders with them.
set -euo pipefail
cd "$(dirname "$0")/.."
built=target/chart

# Installs again only when the requirements changed. $1: the installed requirements, $2: the required ones.
is_current() { cmp --quiet "$1" "$2"; }

mkdir -p "$built"
if ! is_current "$built/venv/requirements.txt" tests/chart/requirements.txt; then
    rm -rf "$built/venv"
    python3 -m venv "$built/venv"
    "$built/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/chart/requirements.txt
    cp tests/chart/requirements.txt "$built/venv"
fi
if ! is_current "$built/package-lock.json" tests/chart/package-lock.json; then
    cp tests/chart/.npmrc tests/chart/package.json tests/chart/package-lock.json "$built"
    export npm_config_loglevel=error npm_config_update_notifier=false
    npm --prefix "$built" ci --no-audit --no-fund --prefer-offline >/dev/null || { rm "$built/package-lock.json"; exit 1; }
fi

# Helm warns about every link that leads out of the chart. These links are intended.
"$built/venv/bin/python" tests/chart/check.py "$built/operator.json" 2> >(grep -v 'found symbolic link in path' >&2)
cp tests/chart/operator.mjs "$built"
node "$built/operator.mjs" "$built/operator.json" "$built/operator.ts"
(cd "$built" && npx tsc --noEmit --strict --skipLibCheck --module nodenext operator.ts)
