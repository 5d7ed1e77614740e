"""Prints the licences of every library that the program contains: each text once, below the libraries that it belongs to.

Usage: python3 deploy/packages/licences.py TARGET, where TARGET is the target triple of the build.
"""

import json
import pathlib
import subprocess
import sys


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def linked(target):
    """Name and version of each linked crate, without tests and build scripts. Includes macro crates, to be safe."""
    lines = output("cargo", "tree", "--locked", "--package", "listenq", "--edges", "normal",
                   "--target", target, "--prefix", "none", "--format", "{p}").splitlines()
    return {tuple(line.split()[:2]) for line in lines} - {("listenq", lines[0].split()[1])}


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    named = package["license_file"]
    names = [named] if named else []
    found = [folder / name for name in names] + sorted(
        path for path in folder.iterdir()
        if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE")))
    return list(dict.fromkeys(path.read_text(errors="replace").strip() for path in found))


def linked_packages(target):
    """The metadata of cargo for each linked library."""
    expected = linked(target)
    metadata = json.loads(output("cargo", "metadata", "--locked", "--format-version", "1"))
    packages = [p for p in metadata["packages"] if (p["name"], "v" + p["version"]) in expected]
    if len(packages) != len(expected):
        sys.exit("some libraries are in the program, but not in cargo's metadata")
    return packages


def main(target):
    heirs = {}
    print("listenq contains these libraries:\n")
    for package in linked_packages(target):
        print(f"{package['name']} {package['version']}  {package['license']}  {package['repository'] or ''}".rstrip())
        for text in texts(package):
            heirs.setdefault(text, []).append(package["name"])
    for text, names in heirs.items():
        print(f"\n{'=' * 78}\n{', '.join(names)}\n{'=' * 78}\n\n{text}")


if __name__ == "__main__":
    main(sys.argv[1])
