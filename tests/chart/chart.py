"""The chart as Helm itself reads it: its objects for a file of values.

As a program: prints what the given files of values make, as a JSON array; later files win, value by value.
"""

import json
import sys
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/listenq"

Objects = dict[tuple[str, str], dict[str, Any]]


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Lays values over each other as Helm does with several files: maps are merged, all else replaced."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def values_of(*files: str | Path) -> dict[str, Any]:
    return merged(*(yaml.safe_load(Path(file).read_text()) for file in files))


def manifest(values: dict[str, Any], chart: Path = CHART) -> str:
    """What `kubectl apply` would be given."""
    with helm_python.Chart.load(chart) as loaded:
        rendered = loaded.render(values, name="listenq", namespace="monitoring")
    assert rendered.pop("listenq/templates/NOTES.txt").strip(), "the notes are empty"
    texts = [text.strip().removeprefix("---").strip() for _, text in sorted(rendered.items())]
    return "".join(f"---\n{text}\n" for text in texts if text)


def render(values: dict[str, Any], chart: Path = CHART) -> Objects:
    """Every object the chart makes, by kind and name."""
    objects: Objects = {}
    for document in yaml.safe_load_all(manifest(values, chart)):
        key = (document["kind"], document["metadata"]["name"])
        assert key not in objects, f"{key} is made twice"
        objects[key] = document
    return objects


if __name__ == "__main__":
    json.dump(list(render(values_of(*sys.argv[1:])).values()), sys.stdout)
