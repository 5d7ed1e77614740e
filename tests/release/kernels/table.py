#!/usr/bin/env python3
"""Reads the output of the emulated kernels: `table.py FOLDER PROGRAMME KERNEL` checks one, `table.py FOLDER all` writes docs/kernels.md."""

import json
import sys
from pathlib import Path

# The groups of checks, and for each check its name in the programme and its name in the table.
ROWS = [
    ("Equal to `ss` (length, limit, drops, sockets)", [
        ("ss_v4", "IPv4"), ("ss_v6", "IPv6"), ("ss_dual_stack", "IPv6 wildcard with IPv4 clients"), ("ss_v4_mapped", "IPv4-mapped address"),
        ("ss_v6only", "`IPV6_V6ONLY` beside an IPv4 wildcard"), ("ss_reuseport", "`SO_REUSEPORT`, 3 sockets"), ("ss_unix", "Unix path"),
        ("ss_abstract", "Unix abstract")]),
    ("Overflows", [
        ("overflows_sum", "sum of the attribution = `ListenOverflows`"), ("overflows_split", "attributed to the full listener, beside deferred accept")]),
    ("Queues", [("waits", "oldest wait"), ("abandoned", "abandoned connections"),
        ("mptcp_closed", "MPTCP connections that the server closed do not wait"), ("mptcp_empty", "MPTCP: no wait where the queue is empty")]),
    ("Namespaces", [("namespaces", "listeners in another namespace"), ("namespace_released", "released when it ends")]),
    ("Owners", [("owners_v1", "cgroup v1"), ("owners_hybrid", "cgroup hybrid"), ("owners_v2", "cgroup v2")]),
    ("Diagnoses", [(f"diagnosis_{word}", f"`{word}`") for word in (
        "imbalance", "stalled", "abandoned", "slow_accept", "standing_queue", "short_queue", "stale_limit", "syn_flood", "not_accepting")]
        + [("diagnosis_none_healthy", "none at a healthy server")]),
    ("Causes, with cgroup v2 controllers", [(f"cause_{word}", f"`{word}`") for word in ("stopped", "frozen", "cpu_throttled", "memory_stall")]),
    ("Circumstances", [
        ("walks", "spaces scans that delay other dumps"), ("modules_missing", "diag modules missing"), ("modules_late", "diag modules loaded late"), ("unprivileged", "user 65534 without privileges"),
        ("memory_64m", "memory limit of 64 MiB"), ("stops_cleanly", "stops on SIGTERM"), ("no_crash", "no panic, no kernel warning")]),
]
VALUES = [
    ("cost", "µs per sample / kernel time of a bare dump, idle"), ("cost_1000", "the same with 1,000 more listeners"),
    ("memory", "resident memory with 1,000 more listeners, MiB")]

PODS = [("Forty pods", [
    ("pods_rate", "each pod is sampled at least 5 times a second"), ("pods_budget", "sampler within 2 % of a core, daemon within 2.75 %"),
    ("pods_overflow", "a burst in one pod is attributed in full")])]
POD_VALUES = [
    ("pods_samples", "samples per second"), ("pods_rate_value", "samples per second of the pod that is sampled least"),
    ("pods_sampler", "CPU time of the sampler, share of a core"), ("pods_daemon", "CPU time of the daemon"),
    ("pods_dump", "kernel time of a bare dump, µs")]
PROGRAMMES = {"programme": (ROWS, VALUES), "pods": (PODS, POD_VALUES)}


def results(path):
    """check -> (result, note) of one kernel."""
    found = {}
    for line in path.read_text(errors="replace").splitlines():
        _, mark, row = line.partition("@@ {")
        if mark:
            row = json.loads("{" + row)
            found[row["check"]] = (row["result"], row["note"])
    return found


def faults(found, groups):
    """The problems of one kernel: wrong results, and checks that did not run."""
    checks = [check for _, rows in groups for check, _ in rows]
    wrong = [f"{check}: {note}" for check, (result, note) in found.items() if result == "no"]
    return wrong + [f"{check}: did not run" for check in [*checks, "end"] if check not in found]


class Notes:
    """Numbers the footnotes. Equal texts have the same number."""

    def __init__(self):
        self.texts = []

    def mark(self, text):
        if text not in self.texts:
            self.texts.append(text)
        return f"<sup>{self.texts.index(text) + 1}</sup>"


def cell(found, check, notes):
    if check not in found and "end" in found:
        return "not tried"
    result, note = found.get(check, ("no", "did not run"))
    if result == "yes":
        return "yes"
    return ("–" if result == "absent" else "**no**") + notes.mark(note)


def table(kernels, groups, values):
    notes = Notes()
    lines = ["| | " + " | ".join(kernels) + " |", "|---|" + "---|" * len(kernels)]

    def value(check, name):
        lines.append(f"| {name} | " + " | ".join(found.get(check, ("", "–"))[1] for found in kernels.values()) + " |")

    value("kernel", "kernel")
    value("commit", "commit of listenq")
    for title, rows in groups:
        lines.append(f"| **{title}** |" + " |" * len(kernels))
        for check, name in rows:
            lines.append(f"| {name} | " + " | ".join(cell(found, check, notes) for found in kernels.values()) + " |")
    lines.append("| **Cost** |" + " |" * len(kernels))
    for check, name in values:
        value(check, name)
    return "\n".join(lines + [""] + [f"{number}. {text}" for number, text in enumerate(notes.texts, 1)]).rstrip() + "\n"


def order(path):
    """The sort key of a column: architecture, then version, then flavour."""
    version, *flavour = path.stem.split("-")
    number = [999] if version == "newest" else [int(part) for part in version.split(".")]
    return flavour[-1], number, flavour


def page(folder):
    text = (Path(__file__).parent / "head.md").read_text()
    for name, (groups, values) in PROGRAMMES.items():
        kernels = {path.stem: results(path) for path in sorted((folder / name).glob("*.log"), key=order)}
        text = text.replace(f"<!-- {name} -->\n", table(kernels, groups, values) if kernels else "Not run.\n")
    return text


def main():
    folder = Path(sys.argv[1])
    if sys.argv[2] == "all":
        sys.stdout.write(page(folder))
        return
    programme, kernel = sys.argv[2:]
    found = results(folder / programme / f"{kernel}.log")
    wrong = faults(found, PROGRAMMES[programme][0])
    print(f"{kernel}: {found.get('kernel', ('', '?'))[1]}: {sum(r == 'yes' for r, _ in found.values())} checks hold, {len(wrong)} do not")
    for line in wrong:
        print(f"  {line}")
    sys.exit(bool(wrong))


main()
