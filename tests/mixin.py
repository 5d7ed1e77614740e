"""Generates the shipped rules from deploy/prometheus/mixin.libsonnet, and compares them, or writes them with --write.

    tests/mixin.py [--write]
    tests/mixin.py --changed DIRECTORY      writes the rules of a mixin with another _config there, after a look at them
"""

import graphlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import _gojsonnet
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "deploy/prometheus"
CHART = ROOT / "deploy/helm/listenq/rules"
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


# Prometheus expands the texts of every alert at every evaluation, so each action costs. benches/fleet.py measures how much.
MOST_ACTIONS = 14
# Replaces a literal, which costs little: this makes a listener one word of the shell.
QUOTE = """{{ reReplaceAll "'" `'\\''` (printf "%s/%s" $labels.netns $labels.address) }}"""


def check_cost(rules):
    """Texts have few actions, at most one regular expression, and at most one query with equality matchers."""
    for alert in rules:
        for name, text in alert["annotations"].items():
            place = f"{alert['alert']}: {name}"
            expressions = text.count("reReplaceAll") - text.count(QUOTE)
            assert text.count("{{") <= MOST_ACTIONS and expressions <= 1, f"{place} is expensive"
            assert ("listenq explain '" in text) == (QUOTE in text), f"{place}: a label is not quoted for the shell"
            queries = re.findall(r'query \(printf "(.*?[^\\])"', text)
            assert len(queries) == text.count("query ") <= 1, f"{place} has several queries"
            assert all("=%q" in query and "=~" not in query for query in queries), f"{place}: the query reads too much"


def listed(values):
    """The names of all alerts and severities, as the rules have them."""
    return sorted({(alert["alert"], severity) for alert in values for severity in ("critical", "warning", "info")})


def matches(matchers, labels):
    """Whether labels satisfy the matchers of Alertmanager."""
    def satisfied(matcher):
        name, operator, value = re.fullmatch(r'(\w+) (=~|!~|!=|=) "(.*)"', matcher).groups()
        same = re.fullmatch(value, labels[name]) is not None if "~" in operator else value == labels[name]
        return same == (operator[0] == "=")

    return all(map(satisfied, matchers))


def check_inhibition(alerts):
    """With any severity of any alert, an alert mutes only alerts of its own or a lower severity, and no two mute each other."""
    rank = {"critical": 2, "warning": 1, "info": 0}
    rules = yaml.safe_load((SHIPPED / "alertmanager.yml").read_text())["inhibit_rules"]
    everything = [{"alertname": name, "severity": severity} for name, severity in listed(alerts)]
    mutes = {}
    for rule in rules:
        assert "cluster" in rule["equal"], rule
        for source in everything:
            for target in everything:
                # The other labels of `equal` may be the same for any two alerts.
                equal = all(source[name] == target[name] for name in rule["equal"] if name in source)
                if source != target and equal and matches(rule["source_matchers"], source) and matches(rule["target_matchers"], target):
                    assert rank[source["severity"]] >= rank[target["severity"]], f"{source} mutes {target}"
                    mutes.setdefault(tuple(source.values()), set()).add(tuple(target.values()))
    assert ("ListenQueueOverflowing", "critical") in mutes[("ListenQueueStalled", "critical")]
    assert ("ListenQueueStalled", "warning") in mutes[("ListenQueueOverflowing", "critical")]
    tuple(graphlib.TopologicalSorter(mutes).static_order())


# The rules of the chart, whose template replaces each placeholder by a value.
PLACEHOLDERS = {
    **{name: f"@{name}@" for name in ("selector", "clusterLabel", "features", "dashboardUrl")},
    **{name: f"@{name}@" for name in ("fleetHosts", "unservedSeconds", "unservedAbandoned")},
    **{name: f"@{name}@" for name in ("nearLimitShare", "nearLimitMin", "unattributedOverflows")},
    "replicaLabels": ["@replicaLabels@"],
    "severities": {name: f"@{name}@" for name in ("page", "warning", "info")},
}
CHART_HEAD = """\
# The rules of deploy/prometheus with placeholders, which templates/prometheusrule.yaml replaces. Generated by tests/mixin.sh:
# do not edit.
"""


def generate(config="{}"):
    """The rules by the name of their file, for an object of jsonnet that overrides `_config`."""
    snippet = f"local mixin = (import 'mixin.libsonnet') + {{ _config+:: {config} }}; [mixin.prometheusAlerts, mixin.prometheusRules]"
    made = json.loads(_gojsonnet.evaluate_snippet(str(SHIPPED / "rules"), snippet))
    dump = lambda rules: yaml.dump(ordered(rules), Dumper=Dumper, sort_keys=False, width=10**6, allow_unicode=True)
    return {name: HEADS[name] + dump(rules) for name, rules in zip(HEADS, made, strict=True)}


def dashboards(config="{}"):
    """The dashboards by the name of their file, for an object of jsonnet that overrides `_config`."""
    snippet = f"((import 'mixin.libsonnet') + {{ _config+:: {config} }}).grafanaDashboards"
    return json.loads(_gojsonnet.evaluate_snippet(str(SHIPPED / "dashboards"), snippet, jpathdir=str(ROOT / "dashboards")))


def runbook_links(boards):
    """The links with the title of the links to runbooks, with the name of their dashboard."""
    def links(value):
        if isinstance(value, dict) and value.get("title") == "Read the runbook":
            yield value["url"]
        members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        for member in members:
            yield from links(member)

    return [(name, url) for name, board in sorted(boards.items()) for url in links(board)]


def check_dashboards():
    """The dashboards of the mixin are the shipped ones, and their links to runbooks follow `_config`."""
    shipped = {path.name: json.loads(path.read_text()) for path in (ROOT / "dashboards").glob("listenq-*.json")}
    assert dashboards() == shipped and len(shipped) == 3
    (link,) = runbook_links(shipped)
    addresses = {
        "https://wiki.example.com/a?b=%s&c": "https://wiki.example.com/a?b=${__data.fields.alertname}&c",
        '"https://wiki\\%s': '"https://wiki\\${__data.fields.alertname}',
        "http://{{ $labels.instance }}/runbooks/%s": "http://${__data.fields.instance:raw}/runbooks/${__data.fields.alertname}",
    }
    for address, expected in addresses.items():
        changed = dashboards(json.dumps({"runbookUrl": address}))
        assert runbook_links(changed) == [(link[0], expected)], runbook_links(changed)
        assert json.loads(json.dumps(changed).replace(json.dumps(expected), json.dumps(link[1]))) == shipped
    (command,) = re.findall(r"^sed '.*runbooks.*$", (ROOT / "docs/dashboards.md").read_text(), re.MULTILINE)
    edited = json.loads(subprocess.run(["sh", "-c", command], check=True, capture_output=True, cwd=ROOT).stdout)
    assert edited == dashboards("{ runbookUrl: 'https://wiki.example.com/%s' }")[link[0]], "docs/dashboards.md: sed"


def generated():
    """The files that the repository contains."""
    shipped = {SHIPPED / name: text for name, text in generate().items()}
    of_chart = generate(json.dumps(PLACEHOLDERS))
    return shipped | {CHART / name: CHART_HEAD + text.removeprefix(HEADS[name]) for name, text in of_chart.items()}


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
    extraLabels: { team: 'edge', namespace: '{{ or $labels.k8s_namespace "monitoring" }}' },
    disabled: ['ListenQueueNearLimit', 'ListenQueueSynFlood'],
}"""


def documented():
    """The alerts of the example in docs/alerts.md, by name."""
    (example,) = re.findall(r"```jsonnet\n(.*?)```", (ROOT / "docs/alerts.md").read_text(), re.DOTALL)
    groups = json.loads(_gojsonnet.evaluate_snippet(str(SHIPPED / "example"), example))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


# Values of `_config` that the mixin refuses, and what the error names. tests/chart/check.py refuses the same.
REFUSED = {
    "{ 'for': { ListenQueueStaled: '1m' } }": "for: there is no alert ListenQueueStaled",
    "{ keepFiringFor: { Stalled: '1m' } }": "keepFiringFor: there is no alert Stalled",
    "{ severity: { ListenQueueOverflow: 'info' } }": "severity: there is no alert ListenQueueOverflow",
    "{ disabled: ['ListenQueueStalled', 'ListenQueueNearlimit'] }": "disabled: there is no alert ListenQueueNearlimit",
    "{ severity: { ListenQueueManyHosts: 'info' } }": "ListenQueueManyHosts has the severity of the alerts that it counts",
    "{ extraLabels: { severity: 'x' } }": "set severity instead of a label severity",
    "{ selector: '' }": "selector is empty",
}


def check_refusals():
    for config, error in REFUSED.items():
        try:
            generate(config)
        except RuntimeError as refusal:
            assert error in str(refusal), f"{config} was refused for {refusal}"
        else:
            raise AssertionError(f"{config} was not refused")


def check_renaming():
    """The commands in docs/alerts.md rename the label of the cluster and the severities, and nothing refers to the old names."""
    commands = re.findall(r"`(sed -i .*)`", (ROOT / "docs/alerts.md").read_text())
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        boards = list((ROOT / "dashboards").glob("listenq-*.json"))
        for file in [SHIPPED / "alertmanager.yml", SHIPPED / "listenq.tmpl", *boards]:
            shutil.copy(file, directory)
        for command in commands:
            subprocess.run(["sh", "-c", command], check=True, cwd=directory)
        subprocess.run(["amtool", "check-config", directory / "alertmanager.yml"], check=True, stdout=subprocess.DEVNULL)
        config = yaml.safe_load((directory / "alertmanager.yml").read_text())
        assert all("k8s_cluster" in rule["equal"] for rule in config["inhibit_rules"]), config["inhibit_rules"]
        assert config["route"]["routes"][0]["group_by"] == ["k8s_cluster", "job", "service"]
        assert config["route"]["routes"][0]["routes"][0]["matchers"] == ['severity = "page"']
        assert not re.search(r"critical|warning|\bcluster\b", json.dumps(config))
        assert ".GroupLabels.k8s_cluster" in (directory / "listenq.tmpl").read_text()
        for board in boards:
            renamed = json.loads((directory / board.name).read_text())
            variables = [variable["name"] for variable in renamed["templating"]["list"]]
            assert "k8s_cluster" in variables and "cluster" not in variables, variables
    assert len(commands) == 2


def check_names(alerts):
    """The schema of the chart knows the names of all alerts."""
    schema = json.loads((CHART.parent / "values.schema.json").read_text())
    assert schema["definitions"]["alert"]["enum"] == sorted({alert["alert"] for alert in alerts}), "values.schema.json: definitions/alert"


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
    by_team = '{{ or $labels.k8s_namespace "monitoring" }}'
    assert stalled["labels"] == {"severity": "page", "team": "edge", "namespace": by_team}
    assert by_team in (ROOT / "docs/alerts.md").read_text()
    assert stalled["annotations"]["runbook_url"] == "https://wiki.example.com/ListenQueueStalled"
    assert all(rule["annotations"]["dashboard"].startswith("https://grafana.example.com/d/") for rule in alerts.values())
    assert all(rule["labels"]["team"] == "edge" for rule in alerts.values())
    assert [rule["labels"]["severity"] for rule in many] == ["page", "warning"] and ">= 40" in many[0]["expr"]
    assert 'severity="page"' in many[0]["expr"] and alerts["ListenQueueExporterDown"]["labels"]["severity"] == "page"
    assert not {"ListenQueueNearLimit", "ListenQueueSynFlood"} & set(alerts)
    made["limits.yml"] = generate("{ replicaLabels: [], unservedSeconds: 0.5 }")["alerts.yml"]
    for file, rules in made.items():
        (pathlib.Path(directory) / file).write_text(rules)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--changed"]:
        sys.exit(changed(sys.argv[2]))
    made = yaml.safe_load(generate()["alerts.yml"])
    alerts = [rule for group in made["groups"] for rule in group["rules"] if "alert" in rule]
    check_cost(alerts)
    check_inhibition(alerts)
    check_names(alerts)
    check_refusals()
    check_renaming()
    check_dashboards()
    for file, rules in generated().items():
        if "--write" in sys.argv:
            file.write_text(rules)
        elif file.read_text() != rules:
            sys.exit(f"{file.relative_to(ROOT)} is not what the mixin gives: LISTENQ_RENEW=1 tests/mixin.sh")
