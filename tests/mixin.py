"""Generates the shipped rules from deploy/prometheus/mixin.libsonnet, and compares them, or writes them with --write.

    tests/mixin.py [--write]
    tests/mixin.py --changed DIRECTORY      writes the rules of a mixin with another _config there, after a look at them
"""

import json
import pathlib
import re
import sys

import _gojsonnet
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "deploy/prometheus"
HEADS = {
    "alerts.yml": """\
# Alerts of listenq, for `rule_files` of Prometheus 2.42 or newer; made for scrape and evaluation intervals of 15 s, up to
# 60 s. deploy/runbooks explains each alert. See also recording.yml and alertmanager.yml in this directory.
#
# The owner labels of an alert come from listenq_listener_incident, which keeps them for the length of an incident. The value
# of an alert about a listener is a whole number plus a hundredth of the number of the cause (docs/causes.md).
#
# Generated from alerts.libsonnet, which explains the rules. Do not edit: set _config, and run tests/mixin.sh.
""",
    "recording.yml": """\
# The series that the dashboard Fleet shows, recorded once a minute; for `rule_files` of Prometheus 2.42 or newer. Needs
# alerts.yml too, which records the overflows. Of many thousand listeners few hold a queue, and only those are recorded:
# reading all listeners costs seconds, reading the recorded ones almost nothing (docs/fleet.md).
#
# Generated from recording.libsonnet, which explains the rules. Do not edit: set _config, and run tests/mixin.sh.
""",
}


class Dumper(yaml.SafeDumper):
    """Writes block strings as such, and indents lists."""

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)


def text(dumper, value):
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


Dumper.add_representer(str, text)


def generate(config="{}"):
    """The rules by the name of their file, for an object of jsonnet that overrides `_config`."""
    snippet = f"local mixin = (import 'mixin.libsonnet') + {{ _config+:: {config} }}; [mixin.prometheusAlerts, mixin.prometheusRules]"
    made = json.loads(_gojsonnet.evaluate_snippet(str(SHIPPED / "rules"), snippet))
    dump = lambda rules: yaml.dump(ordered(rules), Dumper=Dumper, sort_keys=False, width=10**6, allow_unicode=True)
    return {name: HEADS[name] + dump(rules) for name, rules in zip(HEADS, made, strict=True)}


# jsonnet sorts keys.
ORDER = ["name", "interval", "record", "alert", "expr", "for", "keep_firing_for", "labels", "rules", "annotations"]
TEXTS = ["summary", "description", "runbook_url", "dashboard"]


def ordered(value):
    if isinstance(value, list):
        return [ordered(each) for each in value]
    if not isinstance(value, dict):
        return value
    place = lambda key: (ORDER + TEXTS).index(key) if key in ORDER + TEXTS else -1
    return {key: ordered(value[key]) for key in sorted(value, key=place)}


CHANGED = """{
    selector: 'job="queues", env="prod"',
    clusterLabel: 'k8s_cluster',
    replicaLabels: ['__replica__'],
    runbookUrl: 'https://wiki.example.com/%s',
    dashboardUrl: 'https://grafana.example.com',
    fleetHosts: 40,
    nearLimitShare: 0.9,
    severities+: { page: 'page' },
    'for': { ListenQueueStalled: '45s' },
    keepFiringFor: { ListenQueueStalled: '7m' },
    severity: { ListenQueueExporterDown: 'page' },
    extraLabels: { team: 'edge' },
    disabled: ['ListenQueueNearLimit', 'ListenQueueSynFlood'],
}"""


def documented():
    """The alerts of the example in docs/alerts.md, by name."""
    (example,) = re.findall(r"```jsonnet\n(.*?)```", (ROOT / "docs/alerts.md").read_text(), re.DOTALL)
    groups = json.loads(_gojsonnet.evaluate_snippet(str(SHIPPED / "example"), example))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def changed(directory):
    """Every value of `_config` must arrive in the rules."""
    example = documented()
    assert "ListenQueueFeatureMissing" not in example and ">= 20" in example["ListenQueueManyHosts"]["expr"]
    made = generate(CHANGED)
    text = "".join(made.values())
    rules = [rule for file in made.values() for group in yaml.safe_load(file)["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    assert not any(old in text for old in ['job="listenq"', "on (cluster", "by (cluster", "prometheus_replica", "critical"]), text
    stalled, many = alerts["ListenQueueStalled"], [rule for rule in rules if rule.get("alert") == "ListenQueueManyHosts"]
    assert (stalled["for"], stalled["keep_firing_for"]) == ("45s", "7m")
    assert stalled["labels"] == {"severity": "page", "team": "edge"}
    assert stalled["annotations"]["runbook_url"] == "https://wiki.example.com/ListenQueueStalled"
    assert all(rule["annotations"]["dashboard"].startswith("https://grafana.example.com/d/") for rule in alerts.values())
    assert all(rule["labels"]["team"] == "edge" for rule in alerts.values())
    assert [rule["labels"]["severity"] for rule in many] == ["page", "warning"] and ">= 40" in many[0]["expr"]
    assert 'severity="page"' in many[0]["expr"] and alerts["ListenQueueExporterDown"]["labels"]["severity"] == "page"
    assert not {"ListenQueueNearLimit", "ListenQueueSynFlood"} & set(alerts)
    for file, rules in made.items():
        (pathlib.Path(directory) / file).write_text(rules)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--changed"]:
        sys.exit(changed(sys.argv[2]))
    for file, rules in generate().items():
        if "--write" in sys.argv:
            (SHIPPED / file).write_text(rules)
        elif (SHIPPED / file).read_text() != rules:
            sys.exit(f"deploy/prometheus/{file} is not what the mixin gives: LISTENQ_RENEW=1 tests/mixin.sh")
