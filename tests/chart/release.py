"""Makes what a release has for Kubernetes, in the directory given: the chart, packed, and plain manifests of it."""

import sys
from pathlib import Path

import helm_python

from chart import CHART, manifest, values_of


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    print(helm_python.package(CHART, destination=directory))
    for name, files in {"listenq": [], "listenq-unprivileged": [CHART / "values-unprivileged.yaml"]}.items():
        path = directory / f"{name}.yaml"
        path.write_text(manifest(values_of(*files)))
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
