#!/usr/bin/env bash
# Prints the section of CHANGELOG.md for one version, which is the text of its release page.
# Usage: deploy/notes.sh VERSION
set -euo pipefail
cd "$(dirname "$0")/.."

notes=$(awk -v version="$1" '/^## / { found = $2 == version; next } found' CHANGELOG.md)
[ -n "$notes" ] || { echo "CHANGELOG.md has no section ## $1" >&2; exit 1; }
echo "$notes"
