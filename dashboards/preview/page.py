"""Writes the page of one dashboard: the dashboard, its variables, and the script that draws it."""

import json
import pathlib
import sys
import time

CELL = 38
HERE = pathlib.Path(__file__).parent


def main():
    name, prometheus = sys.argv[1:3]
    dashboard = json.loads((HERE.parent / f"listenq-{name}.json").read_text())
    if prometheus == "height":
        bottom = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
        print(bottom * CELL + 80)
        return
    now = int(time.time())
    variables = {"datasource": "prometheus", "job": "listenq", "instance": ".*", "netns": ".*"}
    variables |= dict(word.split("=", 1) for word in sys.argv[4:])
    # Fleet shows all instances, Host all namespaces.
    if name == "fleet":
        variables["instance"] = ".*"
    if name == "host":
        variables["netns"] = ".*"
    look = {"prometheus": prometheus, "from": now - 60 * int(sys.argv[3]), "to": now, "variables": variables}
    preview = json.dumps({"dashboard": dashboard, "look": look, "dark": True})
    print(f"""<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css">
<style>body {{ margin: 0 }}</style><div id="page"></div>
<script>const PREVIEW = {preview.replace("<", chr(92) + "u003c")}; window.PREVIEW = PREVIEW</script>
<script src="page.js"></script>""")


main()
