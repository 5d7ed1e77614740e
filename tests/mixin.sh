#!/usr/bin/env bash
# Compares the shipped rules with those that a real jsonnet generates from mixin.libsonnet, and checks that _config changes them.
#
#     LISTENQ_RENEW=1 tests/mixin.sh      generates the shipped rules
set -euo pipefail
cd "$(dirname "$0")/.."

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# Debian's jsonnet is the C++ implementation.
python3 -m pip install --quiet --root-user-action=ignore --target "$root/python" gojsonnet==0.22.0 PyYAML==6.0.4
export PYTHONPATH=$root/python
if [ -n "${LISTENQ_RENEW:-}" ]; then python3 tests/mixin.py --write; fi
python3 tests/mixin.py
python3 tests/mixin.py --changed "$root"
promtool check rules --lint=all --lint-fatal "$root"/*.yml
cp tests/mixin/changed.yml "$root/test.yml"
promtool test rules "$root/test.yml"
