#!/usr/bin/env bash
# Builds the checked-out commit in two fresh directories with different paths, and compares every released file.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/release/tools.sh
source tests/release/tools.sh

debian buildah libcap2-bin python3
crates cargo-deb cargo-generate-rpm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for folder in "$work/a" "$work/another/and/deeper/folder"; do
    git clone --quiet . "$folder"
    "$folder/deploy/build.sh" "$@"
done
diff "$work/a/dist/SHA256SUMS" "$work/another/and/deeper/folder/dist/SHA256SUMS" || fail "the same commit gave different files"
echo "reproducible: $(wc -l <"$work/a/dist/SHA256SUMS") files of $(git rev-parse --short=12 HEAD)"
