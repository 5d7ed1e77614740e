#!/usr/bin/env python3
"""Checks every lock file against a checkout of the RustSec advisory database, and prints the date of the database.

Usage: advisories.py DATABASE LOCKFILE...

Ends with 1 when a locked crate has a vulnerability or is unsound, or the database cannot be read. Crates that are
unmaintained are printed and do not fail.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path


def numbers(version):
    """A comparable version: a release is greater than its pre-releases."""
    core, _, pre = version.split("+")[0].partition("-")
    parts = [int(part) for part in core.split(".")] + [0, 0]
    key = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".")] if pre else []
    return (tuple(parts[:3]), not pre, key)


def next_breaking(version):
    """The first version that a caret requirement on `version` excludes."""
    parts = [int(part) for part in re.split(r"[-+]", version)[0].split(".")]
    for place, part in enumerate(parts):
        if part or place == len(parts) - 1:
            return ".".join(map(str, parts[:place] + [part + 1]))
    raise ValueError(version)


def matches_one(version, comparator):
    operator, wanted = re.fullmatch(r"\s*(>=|<=|>|<|=|\^|~)?\s*(\S+)\s*", comparator).groups()
    has, needs = numbers(version), numbers(wanted)
    if operator == "~":
        parts = wanted.split(".")
        upper = ".".join([*parts[:1], str(int(parts[1]) + 1)]) if len(parts) > 1 else str(int(parts[0]) + 1)
        return needs <= has < numbers(upper)
    if operator in (None, "^"):
        return needs <= has < numbers(next_breaking(wanted))
    return {">=": has >= needs, "<=": has <= needs, ">": has > needs, "<": has < needs, "=": has == needs}[operator]


def matches(version, requirement):
    return requirement.strip() == "*" or all(matches_one(version, part) for part in requirement.split(","))


def advisories(database):
    """The advisories by crate."""
    found = {}
    for path in sorted(database.glob("crates/*/*.md")):
        block = re.match(r"```toml\n(.*?)\n```", path.read_text(encoding="utf-8"), re.DOTALL)
        if block is None:
            raise SystemExit(f"{path} is no advisory")
        text = tomllib.loads(block.group(1))
        found.setdefault(text["advisory"]["package"], []).append(text)
    return found


def is_affected(version, advisory):
    versions = advisory.get("versions", {})
    safe = [*versions.get("patched", []), *versions.get("unaffected", [])]
    return not any(matches(version, requirement) for requirement in safe)


def date_of(database):
    date = subprocess.run(
        ["git", "-C", str(database), "log", "-1", "--format=%cs"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if date:
        return date
    dates = re.findall(r'^date = "([0-9-]+)"', "\n".join(p.read_text() for p in database.glob("crates/*/*.md")), re.M)
    return f"{max(dates)} (newest advisory)"


def main(database, lock_files):
    known = advisories(database)
    if not known:
        raise SystemExit(f"{database} holds no advisory: is it a checkout of the RustSec advisory database?")
    count = sum(map(len, known.values()))
    print(f"RustSec advisory database of {date_of(database)}: {count} advisories")
    fatal = 0
    for lock_file in lock_files:
        packages = tomllib.loads(Path(lock_file).read_text())["package"]
        for package in packages:
            for text in known.get(package["name"], []):
                advisory = text["advisory"]
                if "withdrawn" in advisory or not is_affected(package["version"], text):
                    continue
                kind = advisory.get("informational", "vulnerability")
                fatal += kind in ("vulnerability", "unsound")
                print(f"{lock_file}: {package['name']} {package['version']}: {advisory['id']} ({kind})")
        print(f"{lock_file}: {len(packages)} crates checked")
    return 1 if fatal else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
