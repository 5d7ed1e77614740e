"""Writes the page of one dashboard: the dashboard, its variables, and the script that draws it.

    page.py DASHBOARD height [ROWS=open]
    page.py DASHBOARD PROMETHEUS MINUTES [END=SECONDS] [SCRAPE=SECONDS] [ROWS=open] [VARIABLE=VALUE...]
"""

import json
import pathlib
import sys
import time

CELL = 38
HERE = pathlib.Path(__file__).parent


def opened(panels):
    """The panels with all collapsed rows open."""
    moved, result = 0, []
    for panel in panels:
        panel["gridPos"]["y"] += moved
        inside = panel.pop("panels", [])
        for one in inside:
            one["gridPos"]["y"] += moved
        bottom = max((one["gridPos"]["y"] + one["gridPos"]["h"] for one in inside), default=panel["gridPos"]["y"] + 1)
        if panel["type"] == "row":
            moved += bottom - panel["gridPos"]["y"] - 1
            panel["collapsed"] = False
        result += [panel, *inside]
    return result


def value_of(variable):
    """The default value of a dashboard's variable."""
    if variable.get("includeAll"):
        return ".*"
    return variable.get("current", {}).get("value", "")


def main():
    name, prometheus = sys.argv[1:3]
    given = dict(word.split("=", 1) for word in sys.argv[3:] if "=" in word)
    dashboard = json.loads((HERE.parent / f"listenq-{name}.json").read_text())
    if given.pop("ROWS", "") == "open":
        dashboard["panels"] = opened(dashboard["panels"])
    if prometheus == "height":
        bottom = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
        print(bottom * CELL + 110)
        return
    to = int(given.pop("END", time.time()))
    scrape = int(given.pop("SCRAPE", 5))
    variables = {variable["name"]: value_of(variable) for variable in dashboard["templating"]["list"]}
    variables |= {"datasource": "prometheus", **given}
    # Fleet shows all clusters and instances, Host all namespaces.
    if name == "fleet":
        variables |= {"cluster": ".*", "instance": ".*"}
    if name == "host":
        variables["netns"] = ".*"
    look = {"prometheus": prometheus, "from": to - 60 * int(sys.argv[3]), "to": to, "scrape": scrape, "variables": variables}
    preview = json.dumps({"dashboard": dashboard, "look": look, "dark": True})
    print(f"""<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css">
<style>body {{ margin: 0 }}</style><div id="page"></div>
<script>const PREVIEW = {preview.replace("<", chr(92) + "u003c")}; window.PREVIEW = PREVIEW</script>
<script src="page.js"></script>""")


main()
