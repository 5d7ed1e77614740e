#!/usr/bin/env bash
# Checks that mixin.libsonnet gives the shipped rules: a real jsonnet evaluates it, and the result passes their unit tests.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# Debian's jsonnet is the C++ one, whose std.parseYaml does not parse every string.
python3 -m pip install --quiet --root-user-action=ignore --target "$root/python" gojsonnet==0.22.0
PYTHONPATH="$root/python" python3 - "$root" <<'PYTHON'
import json
import pathlib
import sys

import _gojsonnet

text = _gojsonnet.evaluate_snippet("rules", "local mixin = import 'deploy/prometheus/mixin.libsonnet'; [mixin.prometheusAlerts, mixin.prometheusRules]")
for name, rules in zip(["alerts.yml", "recording.yml"], json.loads(text), strict=True):
    (pathlib.Path(sys.argv[1]) / name).write_text(json.dumps(rules))
PYTHON

promtool check rules --lint=all --lint-fatal "$root"/*.yml
mkdir "$root/tests"
for tests in tests/rules/*.yml; do
    sed "s|\.\./\.\./deploy/prometheus/|$root/|" "$tests" >"$root/tests/${tests##*/}"
done
promtool test rules "$root"/tests/*.yml
