"""Makes what a release has for Kubernetes, in the directory given: the chart, packed, and plain manifests of it."""

import gzip
import os
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import helm_python

from chart import CHART, manifest, values_of


def pack(directory: Path) -> Path:
    """The chart as Helm packs it, without the time of packing: it is SOURCE_DATE_EPOCH's."""
    path = Path(helm_python.package(CHART, destination=directory))
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive if member.isfile()]
    with (
        open(path, "wb") as file,
        gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for member, content in members:
            member.mtime = int(os.environ["SOURCE_DATE_EPOCH"])
            member.pax_headers = {}
            archive.addfile(member, BytesIO(content))
    return path


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    print(pack(directory))
    for name, files in {"listenq": [], "listenq-unprivileged": [CHART / "values-unprivileged.yaml"]}.items():
        path = directory / f"{name}.yaml"
        path.write_text(manifest(values_of(*files)))
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
