#!/usr/bin/python3
"""Measures the cost of listenq and of other tools on the same machine, and writes docs/performance.md and docs/performance.png.

Run tests/release/performance.py as root on an idle machine; it takes about eight minutes. Needs Debian's python3-matplotlib,
prometheus-node-exporter, ruby-raindrops, netdata-core, iproute2. It runs in its own PID, mount and network namespaces, so listenq
and the other tools see only what it made, and all processes end with it.
"""

import ctypes
import datetime
import glob
import gzip
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LISTENQ = f"{ROOT}/target/release/listenq"
PAGE, PLOT = f"{ROOT}/docs/performance.md", f"{ROOT}/docs/performance.png"
BEGIN, END = "<!-- figures -->\n", "<!-- /figures -->\n"
INSIDE = "LISTENQ_PERFORMANCE_INSIDE"
SIZES = [10, 100, 1_000, 10_000]
# The rows for few listeners that benches/live.rs prints; the last row is without connections.
FEW = 4
NAMESPACES = 200
# How long each program is measured at rest, in seconds.
WATCHED = 15
# The number of scrapes, or of runs of ss and raindrops, whose mean is taken.
ROUNDS = 20
CLONE_NEWNET = 0x40000000
NODE_EXPORTER = "prometheus-node-exporter"
libc = ctypes.CDLL(None, use_errno=True)


# === What is measured ===


class Program:
    """A daemon that listens at a port; it is stopped at the end of the `with` block."""

    def __init__(self, command, port, path="/metrics"):
        self.url = f"http://127.0.0.1:{port}{path}"
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                self.scrape()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"{command[0]} does not answer at {self.url}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def scrape(self, encoding="identity"):
        request = urllib.request.Request(self.url, headers={"Accept-Encoding": encoding})
        return urllib.request.urlopen(request).read()

    def processes(self):
        """The PIDs of the daemon and of its descendants."""
        found, parents = [self.process.pid], {}
        for stat in glob.glob("/proc/[0-9]*/stat"):
            try:
                fields = open(stat).read().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(stat.split("/")[2]))
        for pid in found:
            found += parents.get(pid, [])
        return found

    def cpu(self):
        """CPU time so far, in seconds."""
        total = 0
        for pid in self.processes():
            for task in glob.glob(f"/proc/{pid}/task/*/schedstat"):
                total += int(open(task).read().split()[0])
        return total / 1e9

    def memory(self):
        """Resident memory, in MiB."""
        statuses = (open(f"/proc/{pid}/status").read() for pid in self.processes())
        return sum(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) for status in statuses) / 1024

    def at_rest(self):
        """CPU use at rest, in percent of a core."""
        before, begin = self.cpu(), time.monotonic()
        time.sleep(WATCHED)
        return 100 * (self.cpu() - before) / (time.monotonic() - begin)

    def scrapes(self, encoding="identity"):
        """CPU time of one scrape in ms, its bytes, and its series."""
        at_rest, begin = self.cpu(), time.monotonic()
        time.sleep(2)
        at_rest = (self.cpu() - at_rest) / (time.monotonic() - begin)
        before, begin = self.cpu(), time.monotonic()
        for _ in range(ROUNDS):
            body = self.scrape(encoding)
        took = self.cpu() - before - at_rest * (time.monotonic() - begin)
        text = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        series = sum(1 for line in text.splitlines() if line and not line.startswith(b"#"))
        return 1e3 * took / ROUNDS, len(body), series


def listenq(*flags):
    return Program([LISTENQ, "--web.listen-address=127.0.0.1:19511", "--log.level=error", *flags], 19511)


def node_exporter():
    flags = ["--collector.disable-defaults", "--collector.netstat", "--collector.tcpstat"]
    flags += ["--web.listen-address=127.0.0.1:19100", "--log.level=error"]
    return Program([NODE_EXPORTER, *flags], 19100)


def netdata(directory):
    for name in ("cache", "lib", "log"):
        os.mkdir(f"{directory}/{name}")
    with open(f"{directory}/netdata.conf", "w", encoding="ascii") as file:
        file.write(
            "[global]\nrun as user = root\n[db]\nmode = ram\n[web]\nbind to = 127.0.0.1\n"
            f"[directories]\ncache = {directory}/cache\nlib = {directory}/lib\nlog = {directory}/log\n"
            "[logs]\naccess = none\n"
        )
    command = ["netdata", "-D", "-p", "19999", "-c", f"{directory}/netdata.conf", "-P", f"{directory}/pid"]
    return Program(command, 19999, "/api/v1/allmetrics?format=prometheus")


def ss():
    """CPU time of one `ss -ltnm`, in ms."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(ROUNDS):
        subprocess.run(["ss", "-ltnm"], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / ROUNDS


def raindrops():
    """CPU time for raindrops to read all listeners once, in ms."""
    script = (
        'require "raindrops"; clock = Process::CLOCK_PROCESS_CPUTIME_ID; look = -> { Raindrops::Linux.tcp_listener_stats }; '
        f"look.call; begins = Process.clock_gettime(clock); {ROUNDS}.times {{ look.call }}; "
        f"puts((Process.clock_gettime(clock) - begins) * 1e3 / {ROUNDS})"
    )
    return float(subprocess.run(["ruby", "-e", script], capture_output=True, text=True, check=True).stdout)


# === What it is measured with ===


def listeners(count, first=20_000):
    sockets = []
    for port in range(first, first + count):
        sockets.append(socket.socket())
        sockets[-1].bind(("127.0.0.1", port))
        sockets[-1].listen(511)
    return sockets


def in_namespace(nth):
    """Two TCP listeners and a Unix listener in a new network namespace."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    name = f"lq-performance-{nth}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    other = os.open(f"/run/netns/{name}", os.O_RDONLY)
    assert libc.setns(other, CLONE_NEWNET) == 0
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(f"\0{name}")
    unix.listen(128)
    sockets = [unix, *listeners(2)]
    assert libc.setns(own, CLONE_NEWNET) == 0
    os.close(own)
    os.close(other)
    return sockets


def connections(count):
    """Opens `count` accepted connections, and holds both ends."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 19_000))
        server.listen(128)
        ends = []
        for _ in range(count):
            client = socket.create_connection(server.getsockname())
            ends += [client, server.accept()[0]]
    return ends


# === The figures ===


def bench(name):
    """The rows of a bench's tables: the numbers of every line that begins with a number."""
    command = ["cargo", "bench", "--locked", "--quiet", "--bench", name]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    print(text, flush=True)
    return [re.findall(r"[\d.]+", line.replace(",", "")) for line in text.splitlines() if re.match(r"\s*\d", line)]


def by_listeners(size):
    """One row of all figures that depend on the number of listeners."""
    kept = listeners(size)
    row = {"listeners": size, "ss": ss(), "raindrops": raindrops()}
    with listenq(f"--listener.max={2 * size}") as daemon:
        time.sleep(3)
        row["scrape"], row["bytes"], row["series"] = daemon.scrapes()
        row["gzip"], row["gzip_bytes"], _ = daemon.scrapes("gzip")
    with listenq() as daemon:
        time.sleep(3)
        daemon.scrapes("gzip")
        row["memory"] = daemon.memory()
    with node_exporter() as other:
        row["node_scrape"], _, row["node_series"] = other.scrapes()
        row["node_memory"] = other.memory()
    for each in kept:
        each.close()
    print(row, flush=True)
    return row


def at_rest():
    rows = []

    def add(what, daemon):
        time.sleep(5)
        rows.append((what, f"{daemon.at_rest():.2f} %", f"{daemon.memory():.1f} MiB"))
        print(rows[-1], flush=True)

    kept = listeners(50)
    for interval in ("100ms", "10ms"):
        with listenq(f"--sample.interval={interval}") as daemon:
            add(f"listenq, 50 listeners in one namespace, a sample every {interval}", daemon)
    with node_exporter() as other:
        add("node_exporter (netstat, tcpstat), not scraped", other)
    with tempfile.TemporaryDirectory() as directory, netdata(directory) as other:
        add("netdata, as Debian installs its core", other)
    kept += [in_namespace(nth) for nth in range(NAMESPACES)]
    with listenq() as daemon:
        time.sleep(30)
        add(f"listenq, {NAMESPACES} namespaces with two TCP listeners and a Unix listener each", daemon)
        achieved = re.search(rb"^listenq_sample_interval_seconds (\S+)", daemon.scrape(), re.M)[1]
        what, share, memory = rows.pop()
        rows.append((f"{what}: a sample every {1e3 * float(achieved):.0f} ms", share, memory))
    return rows


def by_connections():
    rows = []
    for size in (0, 1_000, 4_000):
        kept = connections(size)
        with node_exporter() as other:
            rows.append((size, ss(), other.scrapes()[0]))
        for each in kept:
            each.close()
        print(rows[-1], flush=True)
    return rows


# === The page ===


def table(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines) + "\n"


def machine():
    cpu = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())[1]
    now = datetime.date.today().isoformat()
    return f"Linux {os.uname().release}, {os.cpu_count()} processors ({cpu}), {now}.\n\n"


def parts(live):
    """The rows of benches/live.rs: by number of listeners, for few listeners, by number of namespaces, and for wake-ups alone."""
    few, many = len(SIZES), len(SIZES) + FEW
    return live[:few], live[few:many], live[many:-2], live[-2:]


def page(live, scan, sizes, rest, crowd):
    ticks, few, many, idle = parts(live)
    text = machine() + "## A tick\n\n"
    text += "Medians in µs of processor time. The floor sends the same request, receives, and counts bytes.\n\n"
    rows = [
        (f"{int(tick[0]):,}", tick[5], tick[6], tick[7], f"{1e3 * row['ss']:,.0f}", f"{1e3 * row['raindrops']:,.0f}")
        for tick, row in zip(ticks, sizes)
    ]
    text += table(["listeners", "tick", "floor", "ratio", "`ss -ltnm`", "raindrops"], rows)
    rows = [(f"{row[0]}, other TCP sockets", *row[5:8]) for row in few[:-1]]
    rows += [(f"{row[0]}, no other TCP socket", *row[5:8]) for row in few[-1:]]
    text += table(["few listeners", "tick", "floor", "ratio"], rows)
    text += "The ticks below include the namespace of listenq itself, the floor does not.\n\n"
    rows = [(f"{row[0]}, a connection in each", *row[5:8], f"{row[8]} ms") for row in many[:-1]]
    rows += [(f"{row[0]}, no connection", *row[5:8], f"{row[8]} ms") for row in many[-1:]]
    text += table(["namespaces of 3 listeners", "tick", "floor", "ratio", "interval within 2 % of a core"], rows)
    floor = [(f"a thread that only wakes up every {ms} ms", f"{float(share):.2f} %", "") for ms, share in idle]
    text += "## At rest\n\n" + table(["program", "share of a core", "resident"], floor + rest)
    text += "## A scrape\n\nProcessor time of whole scrapes, HTTP included.\n\n"
    rows = []
    for row in sizes:
        each, other = 1e3 * row["scrape"] / row["series"], 1e3 * row["node_scrape"] / row["node_series"]
        rows.append((
            f"{row['listeners']:,}", f"{row['series']:,}", f"{row['scrape']:.2f} ms", f"{each:.2f} µs", f"{row['gzip']:.2f} ms",
            f"{row['bytes']:,} / {row['gzip_bytes']:,}", f"{row['node_scrape']:.2f} ms", f"{other:.2f} µs",
        ))
    head = ["listeners", "series", "scrape", "per series", "with gzip", "bytes plain / gzip"]
    text += table([*head, f"node_exporter ({sizes[0]['node_series']} series)", "per series"], rows)
    text += "## Memory\n\nResident after scrapes, in MiB, with the default `--listener.max`.\n\n"
    rows = [(f"{row['listeners']:,}", f"{row['memory']:.1f}", f"{row['node_memory']:.1f}") for row in sizes]
    text += table(["listeners", "listenq", "node_exporter"], rows)
    text += "## A connection scan\n\nIn ms; off the sampling path, and never more than 1 % of a core.\n\n"
    text += table(["connections", "scan", "bare dumps", "ratio"], [(f"{int(row[0]):,}", *row[1:4]) for row in scan])
    text += "Others, in ms of processor time:\n\n"
    rows = [(f"{size:,}", f"{look:.2f}", f"{scrape:.2f}") for size, look, scrape in crowd]
    return text + table(["connections", "`ss -ltnm`", "a scrape of node_exporter"], rows)


def plot(live, scan, sizes, rest, crowd):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), dpi=80)
    ticks, _, many, _ = parts(live)
    many = many[:-1]
    listeners_seen = [row["listeners"] for row in sizes]

    def draw(axis, title, x, lines):
        for label, values in lines.items():
            axis.loglog(x, values, marker="o", label=label)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)

    draw(axes[0][0], "one look at all listeners, µs by listeners", listeners_seen, {
        "listenq: tick": [float(tick[5]) for tick in ticks],
        "floor: bare dump": [float(tick[6]) for tick in ticks],
        "ss -ltnm": [1e3 * row["ss"] for row in sizes],
        "raindrops": [1e3 * row["raindrops"] for row in sizes],
    })
    draw(axes[0][1], "scrape, µs per series by listeners", listeners_seen, {
        "listenq": [1e3 * row["scrape"] / row["series"] for row in sizes],
        "node_exporter": [1e3 * row["node_scrape"] / row["node_series"] for row in sizes],
    })
    draw(axes[1][0], "resident memory, MiB by listeners", listeners_seen, {
        "listenq": [row["memory"] for row in sizes],
        "node_exporter": [row["node_memory"] for row in sizes],
        "netdata": [float(next(memory for what, _, memory in rest if what.startswith("netdata")).split()[0])] * len(sizes),
    })
    axis = axes[1][1]
    draw(axis, "tick by namespaces of 3, µs; scan by connections, µs", [int(row[0]) for row in many], {
        "listenq: tick by namespaces": [float(row[5]) for row in many],
        "floor by namespaces": [float(row[6]) for row in many],
    })
    axis.loglog([int(row[0]) for row in scan], [1e3 * float(row[1]) for row in scan], marker="s", label="listenq: scan by connections")
    axis.loglog([max(size, 1) for size, *_ in crowd], [1e3 * scrape for *_, scrape in crowd], marker="s", label="node_exporter: scrape by connections")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PLOT)


def write(text):
    with open(PAGE, encoding="utf-8") as file:
        before, rest = file.read().split(BEGIN)
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(before + BEGIN + "\n" + text + END + rest.split(END)[1])


def main():
    if INSIDE not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--locked", "--workspace"], cwd=ROOT, check=True)
        subprocess.run(["cargo", "bench", "--locked", "--no-run", "--bench", "live", "--bench", "scan"], cwd=ROOT, check=True)
        os.environ[INSIDE] = "1"
        unshare = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
        os.execvp("unshare", [*unshare, sys.executable, *sys.argv])
    os.makedirs("/run/netns", exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sizes = [by_listeners(size) for size in SIZES]
    crowd, rest = by_connections(), at_rest()
    live, scan = bench("live"), bench("scan")
    figures = (live, scan[:4], sizes, rest, crowd)
    write(page(*figures))
    plot(*figures)


if __name__ == "__main__":
    main()
