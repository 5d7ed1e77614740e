"""listenq in an emulated kernel: starts it, parses what it exposes, and reports the results of checks.

One line of JSON after "@@ " per result: check, result ("yes", "no", "absent" or "value"), note.
"""

import json
import re
import resource
import socket
import struct
import subprocess
import sys
import time
import traceback

from scenes import write

LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def report(check, result, note=""):
    print("@@ " + json.dumps({"check": check, "result": result, "note": str(note)}), flush=True)


def expect(check, wrong, note=""):
    """Reports "yes", or "no" with a description of what is wrong."""
    report(check, "no" if wrong else "yes", "; ".join(map(str, wrong)) if wrong else note)


class Metrics:
    """The samples of one scrape, or only those with a prefix: parsing is slow in an emulator."""

    def __init__(self, text, begins=("listenq_", "process_")):
        self.rows = []
        for line in text.splitlines():
            if line.startswith(begins) and (match := LINE.match(line)):
                self.rows.append((match[1], dict(LABEL.findall(match[2] or "")), float(match[3])))

    def all(self, name, **labels):
        wanted = labels.items()
        return [(found, value) for row, found, value in self.rows if row == name and wanted <= found.items()]

    def one(self, name, **labels):
        found = self.all(name, **labels)
        return found[0][1] if found else None


class Daemon:
    """A running listenq."""

    def __init__(self, port, user=None, cgroup=None):
        self.port = port
        self.log = open(f"/tmp/listenq-{port}.log", "w+")
        command = ["/bin/listenq", f"--web.listen-address=127.0.0.1:{port}", f"--control.socket=/tmp/control-{port}"]

        def prepare():
            if cgroup:
                write(f"{cgroup}/cgroup.procs", 0)

        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log, user=user, group=user, preexec_fn=prepare)
        if not self.wait(lambda m: m.rows and (m.one("listenq_samples_total") or 0) > 5, 30):
            print(f"listenq at port {port} does not answer:", open(self.log.name).read()[-2000:])

    def text(self):
        """The metrics as text, empty if the daemon does not answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                chunks = []
                while chunk := client.recv(65536):
                    chunks.append(chunk)
        except OSError:
            return ""
        return b"".join(chunks).decode()

    def metrics(self, *begins):
        return Metrics(self.text(), *([begins] if begins else []))

    def wait(self, condition, seconds):
        """Scrapes until the condition holds; returns the seconds that this took, or None."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if condition(self.metrics()):
                return time.monotonic() - begin
            time.sleep(0.3)
        return None

    def stop(self):
        self.process.terminate()
        code = self.process.wait(20)
        self.log.seek(0)
        return code, self.log.read()


def feature(metrics, name):
    return metrics.one("listenq_feature_available", feature=name)


def text_of(command, netns=None):
    prefix = ["/sbin/ip", "netns", "exec", netns] if netns else []
    return subprocess.run(prefix + command, capture_output=True, text=True).stdout


def counters(netns=None):
    """The kernel's counters of TcpExt."""
    names, values = text_of(["/bin/cat", "/proc/net/netstat"], netns).splitlines()[:2]
    return dict(zip(names.split()[1:], map(int, values.split()[1:])))


def dump_cost(times):
    """Kernel time of one dump of all TCP listeners, in µs."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)
    netlink.bind((0, 0))
    # inet_diag_req of the older request, which answers both families: LISTEN only, with SKMEMINFO.
    request = struct.pack("=IHHII", 76, 18, 0x301, 1, 0) + bytes(3) + b"\x40" + bytes(48) + struct.pack("=II", 1 << 10, 0)
    buffer = bytearray(65536)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    for _ in range(times):
        netlink.send(request)
        # The last message is NLMSG_DONE (3), which takes 20 bytes.
        while struct.unpack_from("=IH", buffer, netlink.recv_into(buffer) - 20) != (20, 3):
            pass
    return (resource.getrusage(resource.RUSAGE_SELF).ru_stime - before) / times * 1e6


def query_times(times):
    """The duration of requests for one socket that does not exist, in µs."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)
    netlink.bind((0, 0))
    # inet_diag_req_v2: IPv4, TCP, any state, port 1 of 127.0.0.1 at both ends, without a cookie.
    ends = struct.pack("!HH4s12x4s12x", 1, 1, b"\x7f\0\0\1", b"\x7f\0\0\1") + struct.pack("=I8s", 0, b"\xff" * 8)
    request = struct.pack("=IHHIIBBBxI", 72, 20, 1, 1, 0, 2, 6, 0, 0xFFFFFFFF) + ends
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        netlink.send(request)
        netlink.recv(4096)
        took.append((time.perf_counter() - begin) * 1e6)
        time.sleep(0.002)
    return took


def guarded(name, work, *arguments):
    """Runs one check. An exception in the check is a wrong result and does not end the programme."""
    print(f"-- {name} at {time.monotonic():.0f} s", flush=True)
    try:
        return work(*arguments)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        report(f"{name}_ran", "no", traceback.format_exc().splitlines()[-1])
