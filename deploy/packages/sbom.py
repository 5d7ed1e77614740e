"""Prints a software bill of materials in CycloneDX: every library that the program contains, with version, licence and checksum.

Usage: python3 deploy/packages/sbom.py TARGET VERSION, where TARGET is the target triple of the build. SOURCE_DATE_EPOCH is the timestamp.
"""

import datetime
import json
import os
import sys
import tomllib
from pathlib import Path

from licences import linked_packages


def checksums():
    """(name, version) -> checksum of the archive on crates.io."""
    packages = tomllib.loads(Path("Cargo.lock").read_text())["package"]
    return {(package["name"], package["version"]): package.get("checksum") for package in packages}


def component(package, checksum):
    name, version = package["name"], package["version"]
    found = {
        "type": "library",
        "bom-ref": f"pkg:cargo/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:cargo/{name}@{version}",
        "scope": "required",
    }
    if package["license"]:
        found["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum:
        found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        found["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return found


def main(target, version):
    sums = checksums()
    time = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
    libraries = sorted(linked_packages(target), key=lambda package: (package["name"], package["version"]))
    json.dump({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "application", "bom-ref": "listenq", "name": "listenq", "version": version,
                          "licenses": [{"license": {"id": "Apache-2.0"}}]},
            "properties": [{"name": "cargo:target", "value": target}],
        },
        "components": [component(package, sums[package["name"], package["version"]]) for package in libraries],
    }, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
