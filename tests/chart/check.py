"""Checks the chart: lint, values that are refused, objects against schemas, rules and dashboards against their sources."""

import json
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from kubernetes_validate.utils import all_versions

from chart import CHART, ROOT, Objects, merged, render, values_of

OPERATOR = "monitoring.coreos.com/v1"
VALUES = ROOT / "tests/chart/values"
# The newest three minor versions.
VERSIONS = list(dict.fromkeys(all_versions()))[-3:]

CORE = {"DaemonSet", "ServiceAccount"}
OPTIONAL = {"NetworkPolicy", "PodMonitor", "PrometheusRule", "ConfigMap"}
# The kind of each monitor, and where its endpoints and its values are.
MONITORS = {"PodMonitor": ("podMetricsEndpoints", "podMonitor"), "ServiceMonitor": ("endpoints", "serviceMonitor")}
# Files of values, laid over the defaults in turn, and the kinds of objects they make.
SCENARIOS: dict[str, tuple[list[Path], set[str]]] = {
    "defaults": ([], CORE),
    "everything": ([VALUES / "everything.yaml"], CORE | OPTIONAL),
    "operator": ([VALUES / "operator.yaml"], CORE | OPTIONAL),
    "service monitor": ([VALUES / "service.yaml"], CORE | {"Service", "ServiceMonitor", "PrometheusRule", "ConfigMap"}),
    "unprivileged": ([CHART / "values-unprivileged.yaml"], CORE),
    "seccomp": ([CHART / "values-seccomp.yaml"], CORE),
    "unprivileged, everything": (
        [VALUES / "everything.yaml", CHART / "values-unprivileged.yaml"],
        CORE | OPTIONAL,
    ),
}

# Values that must be refused, and the place, or the name of a property, that the refusal names.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prot": 1}, "prot"),
    ({"port": "19511"}, "/port"),
    ({"port": 70000}, "/port"),
    ({"image": {"digest": "latest"}}, "/image/digest"),
    ({"hostPodLogsMount": {"enabled": "yes"}}, "/hostPodLogsMount/enabled"),
    ({"extraArgs": ["--web.listen-address=:80"]}, "/extraArgs/0"),
    ({"extraArgs": ["listener.max=5"]}, "/extraArgs/0"),
    ({"containerSecurityContext": {"capabilities": {"add": ["CAP_SYS_ADMIN"]}}}, "/capabilities/add/0"),
    ({"prometheus": {"podMonitor": {"scheme": "ftp"}}}, "/podMonitor/scheme"),
    ({"prometheus": {"serviceMonitor": {"interval": "15"}}}, "/serviceMonitor/interval"),
    ({"prometheus": {"podMonitor": {"interval": "15"}}}, "/podMonitor/interval"),
    ({"prometheus": {"rules": {"for": {"ListenQueueStalled": "soon"}}}}, "/rules/for"),
    ({"prometheus": {"rules": {"disabled": ["ListenQueueStaled"]}}}, "/rules/disabled/0"),
    ({"prometheus": {"rules": {"for": {"ListenQueueStaled": "1m"}}}}, "'ListenQueueStaled'"),
    ({"prometheus": {"rules": {"keepFiringFor": {"Stalled": "1m"}}}}, "'Stalled'"),
    ({"prometheus": {"rules": {"severity": {"ListenQueueOverflow": "info"}}}}, "'ListenQueueOverflow'"),
    ({"prometheus": {"rules": {"severity": {"ListenQueueManyHosts": "info"}}}}, "'ListenQueueManyHosts'"),
    ({"prometheus": {"rules": {"extraLabels": {"severity": "x"}}}}, "'severity'"),
    ({"prometheus": {"rules": {"selector": ""}}}, "/rules/selector"),
    ({"prometheus": {"rules": {"fleetHosts": 1}}}, "/rules/fleetHosts"),
    ({"prometheus": {"rules": {"nearLimitShare": 80}}}, "/rules/nearLimitShare"),
    ({"prometheus": {"rules": {"severities": {"page": "it's"}}}}, "/rules/severities/page"),
    ({"extraHostVolumeMounts": [{"name": "x", "hostPath": "run", "mountPath": "/x"}]}, "/hostPath"),
    ({"webConfig": {"existingSecret": "Not_A_Name"}}, "/webConfig/existingSecret"),
]


def sources() -> tuple[dict[str, Any], dict[str, Any]]:
    """What the rules and dashboards of this repository are, by the name of their file."""
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "deploy/prometheus").glob("*.yml")}
    rules = {stem: text for stem, text in files.items() if "groups" in text}
    boards = {path.name: json.loads(path.read_text()) for path in (ROOT / "dashboards").glob("*.json")}
    return rules, {name: board for name, board in boards.items() if "uid" in board}


def check_versions() -> None:
    with (ROOT / "Cargo.toml").open("rb") as file:
        version = tomllib.load(file)["workspace"]["package"]["version"]
    meta = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (meta["version"], meta["appVersion"]) == (version, version), "Chart.yaml and Cargo.toml differ"


def check_lint(name: str, values: dict[str, Any]) -> None:
    for version in VERSIONS:
        report = helm_python.lint(CHART, values, strict=True, kube_version=f"v{version}")
        complaints = [message for message in report["messages"] if message["severity"] > 0]
        assert not complaints and not report["errors"], f"{name}: {complaints} {report['errors']}"


def check_refusals() -> None:
    for values, place in REFUSED:
        try:
            render(values)
        except helm_python.HelmValuesError as error:
            assert place in str(error), f"{values} was refused for {error}"
        else:
            raise AssertionError(f"{values} was not refused")


def check_twice() -> None:
    """Both monitors together would scrape every pod twice."""
    both = {"prometheus": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}}
    try:
        render(both)
    except Exception as error:
        assert "twice" in str(error), error
    else:
        raise AssertionError("both monitors were made")


def check_kubernetes(objects: Objects) -> None:
    for document in objects.values():
        if document["apiVersion"] != OPERATOR:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)


def check_sources(objects: Objects) -> None:
    rules, boards = sources()
    made = [document["spec"] for (kind, _), document in objects.items() if kind == "PrometheusRule"]
    assert made == [spec for _, spec in sorted(rules.items())], "rules are not those of deploy/prometheus"
    config_maps = [kind for kind, _ in objects if kind == "ConfigMap"]
    assert dashboards_of(objects) == boards, "dashboards are not those of dashboards/: is there a link for each in the chart?"
    assert len(config_maps) == len(boards) and rules and boards


RULES: dict[str, Any] = {
    "enabled": True,
    "selector": 'job="queues"',
    "clusterLabel": "k8s_cluster",
    "replicaLabels": ["__replica__"],
    "fleetHosts": 40,
    "unservedSeconds": 45,
    "unservedAbandoned": 9,
    "nearLimitShare": 0.95,
    "nearLimitMin": 32,
    "unattributedOverflows": 50,
    "features": "owners|scan",
    "severities": {"page": "page", "warning": "ticket", "info": "note"},
    "runbookUrl": "https://wiki.example.com/%s",
    "dashboardUrl": "https://grafana.example.com",
    "for": {"ListenQueueStalled": "45s"},
    "keepFiringFor": {"ListenQueueStalled": "7m"},
    "severity": {"ListenQueueExporterDown": "critical"},
    "extraLabels": {"namespace": '{{ or $labels.k8s_namespace "monitoring" }}'},
    "disabled": ["ListenQueueNearLimit"],
}


def check_rule_values() -> None:
    """Every value of the rules arrives in them, and nothing else changes: the mixin gives the same for the same values."""
    assert set(RULES) == set(values_of(CHART / "values.yaml")["prometheus"]["rules"]) - {"namespace", "additionalLabels"}
    for rules in (RULES, RULES | {"replicaLabels": [], "unservedSeconds": 0.5}):
        check_same_rules(rules)


def check_same_rules(rules: dict[str, Any]) -> None:
    made = [document["spec"] for (kind, _), document in render({"prometheus": {"rules": rules}}).items() if kind == "PrometheusRule"]
    config = {key: value for key, value in rules.items() if key != "enabled"}
    expected = of_mixin("[yaml.safe_load(text) for text in mixin.generate(sys.argv[1]).values()]", config)
    assert made == expected, "the chart and the mixin make different rules of the same values"


def of_mixin(expression: str, config: dict[str, Any]) -> Any:
    """The value of an expression that makes something of tests/mixin.py with this configuration."""
    script = f"import sys; sys.path.insert(0, 'tests'); import json, mixin, yaml; print(json.dumps({expression}))"
    command = [sys.executable, "-c", script, json.dumps(config)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def check_runbook_links() -> None:
    """The dashboards link to the runbooks of the rules' values, as those of the mixin do."""
    for url in ("https://wiki.example.com/%s?a&b", 'https://wiki.example.com/"%s', "http://{{ $labels.instance }}/runbooks/%s"):
        values = {"dashboards": {"enabled": True}, "prometheus": {"rules": {"runbookUrl": url}}}
        made = dashboards_of(render(values))
        assert made != sources()[1], f"{url} does not arrive in the dashboards"
        assert made == of_mixin("mixin.dashboards(sys.argv[1])", {"runbookUrl": url}), f"{url}: the chart and the mixin differ"


def dashboards_of(objects: Objects) -> dict[str, Any]:
    config_maps = [document["data"] for (kind, _), document in objects.items() if kind == "ConfigMap"]
    return {name: json.loads(text) for data in config_maps for name, text in data.items()}


def relabelled(objects: Objects) -> list[dict[str, str]]:
    """The labels that a target gets: as the operator gives them to a pod, then through the rules of the monitor."""
    (monitor,) = [document for (kind, _), document in objects.items() if kind in MONITORS]
    endpoints, _ = MONITORS[monitor["kind"]]
    snake = lambda key: re.sub("[A-Z]", lambda capital: "_" + capital[0].lower(), key)
    rules = monitor["spec"][endpoints][0]["relabelings"]
    labels = {"__meta_kubernetes_pod_node_name": "worker-1", "pod": "listenq-x7k2p", "job": "monitoring/listenq"}
    scrape = {
        "job_name": "pod",
        "static_configs": [{"targets": ["192.0.2.7:19511"], "labels": labels}],
        "relabel_configs": [{snake(key): value for key, value in rule.items()} for rule in rules],
    }
    return discovered({"scrape_configs": [scrape]})


def discovered(config: dict[str, Any]) -> list[dict[str, str]]:
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        command = ["promtool", "check", "service-discovery", "--timeout=1s", file.name, "pod"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    visible = lambda labels: {name: value for name, value in labels.items() if not name.startswith("__")}
    return [visible(target["labels"]) for target in json.loads(out)]


def check_package(everything: dict[str, Any]) -> None:
    """What is packed has all it needs with it, and nothing more."""
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(helm_python.package(CHART, destination=directory))
        assert archive.stat().st_size < 256 * 1024, "it must fit into a Secret, with all it makes"
        with helm_python.Chart.load(archive) as chart:
            files = {file["name"] for file in chart.files}
        assert render(everything, archive) == render(everything), "the package makes something else"
    rules, boards = sources()
    expected = {"README.md", "values-seccomp.yaml", "values-unprivileged.yaml", "seccomp/listenq.json"}
    expected |= {f"rules/{stem}.yml" for stem in rules} | {f"dashboards/{name}" for name in boards}
    assert files == expected, files ^ expected


def check_commands() -> None:
    """Values that the README's commands set, and files they name, are such."""
    blocks = re.findall(r"```sh\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    commands = [words for block in blocks for words in shlexed(block) if words[:2] in (["helm", "install"], ["helm", "upgrade"])]
    assert len(commands) >= 3
    for words in commands:
        options = list(zip(words, words[1:]))
        sets = [helm_python.parse_set_string(value) for flag, value in options if flag == "--set"]
        files = [ROOT / value for flag, value in options if flag == "-f"]
        assert render(merged(values_of(*files), *sets)), words


def shlexed(block: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]


def check_scrape() -> None:
    """The scrape configuration for those without the operator."""
    (text,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    config = yaml.safe_load(text)
    (scrape,) = config["scrape_configs"]
    labels = {
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": "listenq",
        "__meta_kubernetes_pod_container_port_name": "metrics",
        "__meta_kubernetes_pod_node_name": "worker-1",
    }
    other = labels | {"__meta_kubernetes_pod_label_app_kubernetes_io_name": "nginx"}
    static = [{"targets": ["192.0.2.7:19511"], "labels": each} for each in (labels, other)]
    assert scrape.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    job = scrape.pop("job_name")
    config["scrape_configs"] = [{"job_name": "pod", "static_configs": static} | scrape]
    kept = {"instance": "192.0.2.7:19511", "job": "pod", "node": "worker-1"}
    assert (job, [labels for labels in discovered(config) if labels]) == ("listenq", [kept])


def main(operator: Path) -> None:
    check_versions()
    check_refusals()
    check_commands()
    check_scrape()
    check_rule_values()
    check_runbook_links()
    made: list[dict[str, Any]] = []
    for name, (files, kinds) in SCENARIOS.items():
        values = values_of(*files)
        check_lint(name, values)
        objects = render(values)
        assert {kind for kind, _ in objects} == kinds, f"{name}: {sorted(objects)}"
        check_kubernetes(objects)
        for kind in kinds & MONITORS.keys():
            scheme = values["prometheus"][MONITORS[kind][1]].get("scheme", "http")
            check_sources(objects)
            target = {"instance": "192.0.2.7:19511", "job": "listenq", "node": "worker-1"}
            extra = {"cluster": "berlin"} if scheme == "https" else {}
            assert relabelled(objects) == [target | extra], relabelled(objects)
        made += [document for document in objects.values() if document["apiVersion"] == OPERATOR]
        print(f"{name}: {len(objects)} objects, Kubernetes {', '.join(VERSIONS)}")
    check_twice()
    check_package(values_of(VALUES / "everything.yaml"))
    operator.write_text(json.dumps(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
