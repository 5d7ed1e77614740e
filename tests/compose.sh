#!/usr/bin/env bash
# Checks the compose file of the demo and the files it mounts: with compose's own schema, with promtool, and with our schema for
# Grafana's files. Every mounted file must exist, since Docker would create a directory for a missing one.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=deploy/demo
config=$(docker-compose -f "$demo/compose.yml" config)
promtool check config --syntax-only "$demo/prometheus.yml"
# docker-compose depends on both modules.
/usr/bin/python3 - "$demo/grafana" <(printf '%s' "$config") <<'PYTHON'
import json, pathlib, sys
import jsonschema, yaml

grafana, config = pathlib.Path(sys.argv[1]), yaml.safe_load(open(sys.argv[2]))
schema = json.loads(pathlib.Path("tests/grafana-provisioning.json").read_text())
kinds = {}
for path in sorted(grafana.glob("*.yml")):
    provisioned = yaml.safe_load(path.read_text())
    jsonschema.validate(provisioned, schema, cls=jsonschema.Draft7Validator)
    kinds.update(provisioned)
mounts = {}
for service in config["services"].values():
    for volume in service.get("volumes", []):
        source, target = (volume.split(":")[:2] if isinstance(volume, str) else (volume["source"], volume["target"]))
        # iproute2 and Docker create these directories with the first namespace.
        made_later = source in ("/run/netns", "/run/docker/netns")
        assert made_later or pathlib.Path(source).exists(), f"{source} is not there"
        mounts[target] = source
# Grafana must search the directory where the dashboards are mounted, and all dashboards must be mounted.
place = kinds["providers"][0]["options"]["path"]
mounted = {pathlib.Path(source).name for target, source in mounts.items() if target.startswith(place + "/")}
shipped = {path.name for path in pathlib.Path("dashboards").glob("listenq-*.json")}
assert mounted == shipped, f"{mounted} are mounted, {shipped} are shipped"
home = config["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
assert home in mounts, f"{home} is not mounted"
prometheus = yaml.safe_load(open("deploy/demo/prometheus.yml"))
rules = {path.name for path in pathlib.Path("deploy/prometheus").glob("*.yml") if "groups" in yaml.safe_load(path.read_text())}
assert set(prometheus["rule_files"]) == rules, f"{rules} are shipped"
unmounted = [name for name in rules if f"/etc/prometheus/{name}" not in mounts]
assert not unmounted, f"{unmounted} are not mounted"
interval = kinds["datasources"][0]["jsonData"]["timeInterval"]
assert interval == prometheus["global"]["scrape_interval"], f"{interval} is not the scrape interval"
PYTHON
echo "compose files are good"
