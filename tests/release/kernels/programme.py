"""The programme that runs in every emulated kernel.

It makes listeners, queues, overflows and slow servers, and compares the metrics of listenq with `ss`, with the kernel's
counters and with what it made itself.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import time

sys.path.insert(0, "/programme")
from daemon import Daemon, Metrics, counters, dump_cost, expect, feature, guarded, query_times, report, text_of
from scenes import (
    MPTCP, accept_all, add_netns, allocate, burn, burst, children, come, connect, flood, ip, listen, listen_unix, serve_at,
    serve_fast, serve_rounds, start, stop, until, wait_in_queue, write,
)

CGROUPS = "/sys/fs/cgroup"


def ss_tcp(netns=None):
    """(address, port) -> [length, limit, drops, sockets] of each listener, summed over its sockets."""
    found = {}
    for line in text_of(["/bin/ss", "-HltnOm"], netns).splitlines():
        _, length, limit, local, *_ = line.split()
        address, _, port = local.rpartition(":")
        address = "::" if address == "*" else address.strip("[]")
        drops = re.search(r"\bd(\d+)\)", line)
        row = found.setdefault((address, port), [0, 0, 0, 0])
        for place, value in enumerate((length, limit, drops[1] if drops else 0, 1)):
            row[place] += int(value)
    return found


def ss_unix(netns=None):
    """name -> [length, limit] of each Unix listener."""
    rows = [line.split() for line in text_of(["/bin/ss", "-HlxO"], netns).splitlines()]
    return {row[4]: [int(row[2]), int(row[3])] for row in rows if row[1] == "LISTEN"}


COLUMNS = ("listenq_accept_queue_length", "listenq_accept_queue_limit", "listenq_listener_drops_total", "listenq_listener_sockets")


def differences(metrics, netns, ports, label="host"):
    """The differences between listenq and ss for TCP listeners at these ports."""
    rows = {key: row for key, row in ss_tcp(netns).items() if int(key[1]) in ports}
    wrong = [] if rows else ["ss shows none of them"]
    for (address, port), row in rows.items():
        for name, value in zip(COLUMNS, row):
            got = metrics.one(name, netns=label, protocol="tcp", address=address, port=port)
            if got != value:
                wrong.append(f"{address}:{port} {name}: {got}, ss {value}")
    return wrong


# === the checks, in the order in which they run ===


def missing_modules():
    """Lengths and features without diag modules, and after they are loaded."""
    server = listen(("127.0.0.1", 7001), 4)
    clients = connect(("127.0.0.1", 7001), 3)
    time.sleep(1)
    daemon = Daemon(19600)
    time.sleep(2)
    before = daemon.metrics()
    if feature(before, "sock_diag") == 1:
        report("modules_missing", "absent", "this kernel has inet_diag built in")
    else:
        labels = {"protocol": "tcp", "address": "127.0.0.1", "port": "7001"}
        length = before.one("listenq_accept_queue_length", **labels)
        limit = before.one("listenq_accept_queue_limit", **labels)
        expect("modules_missing", [] if (length, limit) == (3, None) else [f"length {length}, limit {limit}"],
               "lengths from /proc/net/tcp; no limits and no drops")
    os.rename("/lib/modules.hidden", "/lib/modules")
    for module in ("tcp_diag", "udp_diag", "unix_diag"):
        subprocess.run(["/sbin/modprobe", module])
    took = daemon.wait(lambda m: feature(m, "sock_diag") == 1 and feature(m, "unix_diag") == 1
                       and m.one("listenq_accept_queue_limit", protocol="tcp", port="7001") == 4, 40)
    expect("modules_late", [] if took is not None else ["no limits 40 s after the modules were loaded"], f"limits after {took or 0:.0f} s")
    code, log = daemon.stop()
    errors = [line for line in log.splitlines() if "panick" in line]
    expect("stops_cleanly", ([f"exit status {code}"] if code else []) + errors)
    server.close()
    return clients


def owner_under(layout, prepare):
    """The systemd unit of a server, with one cgroup layout."""
    mounted = prepare()
    group = f"{mounted}/system.slice/shop-{layout}.service"
    os.makedirs(group)
    server = start(lambda: serve_fast(listen(("127.0.0.1", 7002), 16), time.monotonic() + 60), cgroup=group)
    time.sleep(1)
    found = Metrics(text_of(["/bin/listenq", "metrics"])).all("listenq_listener_info", protocol="tcp", port="7002")
    stop([server])
    unit = found[0][0]["unit"] if found else None
    process = found[0][0]["process"] if found else None
    wrong = [] if (unit, process) == (f"shop-{layout}.service", "python3.11") else [f"unit {unit}, process {process}"]
    expect(f"owners_{layout}", wrong)
    time.sleep(0.5)
    os.rmdir(group)
    os.rmdir(os.path.dirname(group))


def mount_v1():
    subprocess.run(["/bin/mount", "-t", "tmpfs", "cgroup", CGROUPS], check=True)
    for folder, options in (("systemd", "none,name=systemd"), ("pids", "pids")):
        os.mkdir(f"{CGROUPS}/{folder}")
        subprocess.run(["/bin/mount", "-t", "cgroup", "-o", options, "cgroup", f"{CGROUPS}/{folder}"], check=True)
    return f"{CGROUPS}/systemd"


def mount_hybrid():
    os.mkdir(f"{CGROUPS}/unified")
    subprocess.run(["/bin/mount", "-t", "cgroup2", "cgroup2", f"{CGROUPS}/unified"], check=True)
    return f"{CGROUPS}/systemd"


def mount_v2():
    for folder in ("unified", "pids", "systemd"):
        subprocess.run(["/bin/umount", f"{CGROUPS}/{folder}"], check=True)
    subprocess.run(["/bin/umount", CGROUPS], check=True)
    subprocess.run(["/bin/mount", "-t", "cgroup2", "cgroup2", CGROUPS], check=True)
    for controller in ("cpu", "memory"):
        try:
            write(f"{CGROUPS}/cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            print(f"controller {controller}: {error}")
    return CGROUPS


def agreement(daemon, held):
    """Exactly equal numbers for every kind of listener at rest."""
    kinds = {
        "v4": [(("127.0.0.1", 7101), {})],
        "v6": [(("::1", 7102), {})],
        "dual_stack": [(("::", 7103), {})],
        "v4_mapped": [(("::ffff:127.0.0.1", 7104), {})],
        "v6only": [(("::", 7105), {"v6only": True}), (("0.0.0.0", 7105), {})],
        "reuseport": [(("127.0.0.1", 7106), {"reuseport": True})] * 3,
    }
    for listeners in kinds.values():
        held += [listen(address, 8, **options) for address, options in listeners]
    held += [listen_unix("/run/shop.sock", 5), listen_unix("\0shop", 5)]
    clients = [("127.0.0.1", 7101, 5), ("::1", 7102, 4), ("127.0.0.1", 7103, 3), ("::1", 7103, 2), ("127.0.0.1", 7104, 3),
               ("::1", 7105, 2), ("127.0.0.1", 7105, 1), ("127.0.0.1", 7106, 7)]
    for address, port, count in clients:
        held += connect((address, port), count)
    held += connect("/run/shop.sock", 3) + connect("\0shop", 2)
    time.sleep(20)
    metrics = daemon.metrics()
    for kind, listeners in kinds.items():
        expect(f"ss_{kind}", differences(metrics, None, {address[1] for address, _ in listeners}))
    unix = ss_unix()
    for kind, name in (("unix", "/run/shop.sock"), ("abstract", "@shop")):
        got = [metrics.one(column, protocol="unix", address=name) for column in COLUMNS[:2]]
        expect(f"ss_{kind}", [] if got == unix.get(name) else [f"{got}, ss {unix.get(name)}"])


def overflows(metrics, netns, port):
    return metrics.one("listenq_listener_overflows_total", netns=netns, port=port) or 0


def attribution(daemon):
    """A burst beside a neighbour with deferred accept, and a slow server; the sum of the attributed overflows."""
    add_netns("burst")
    begin = time.monotonic() + 15

    def serve():
        victim, neighbour = listen(("127.0.0.1", 80), 4), listen(("127.0.0.1", 81), 64, defer=5)
        start(lambda: serve_fast(neighbour, begin + 40))
        serve_rounds(victim, 5, begin + 40)

    pids = [start(serve, "burst")]
    pids += [start(lambda: come(("127.0.0.1", 81), 10, 8, begin - 5, begin + 20), "burst")]
    pids += [start(lambda: burst(("127.0.0.1", 80), 30, 4, [begin, begin + 10]), "burst")]
    until(begin + 26)
    metrics = daemon.metrics()
    kernel = counters("burst")["ListenOverflows"]
    drops = metrics.one("listenq_listener_drops_total", netns="burst", port="81") or 0
    victim, neighbour = overflows(metrics, "burst", "80"), overflows(metrics, "burst", "81")
    rest = sum(metrics.one(f"listenq_netns_{kind}_overflows_total", netns="burst") or 0 for kind in ("unattributed", "unexposed"))
    total = metrics.one("listenq_netns_listen_overflows_total", netns="burst")
    wrong = [] if kernel == total and kernel > 20 else [f"the kernel counted {kernel}, listenq {total}"]
    if victim + neighbour + rest != total:
        wrong.append(f"the sum is {victim} + {neighbour} + {rest}, not {total}")
    expect("overflows_sum", wrong, f"{kernel} overflows")
    wrong = [] if victim >= 0.97 * kernel and drops > 0 else [f"{victim} of {kernel} attributed, the neighbour has {neighbour}, {drops} drops"]
    expect("overflows_split", wrong, f"{victim:.0f} of {kernel} to the full listener, {neighbour:.0f} to the neighbour with {drops:.0f} harmless drops")
    stop(pids)


def namespaces(daemon):
    """A namespace with a listener: listenq sees it, agrees with ss, and releases it when it ends."""
    add_netns("pod1")
    pid = start(lambda: [listen(("127.0.0.1", 80), 4), listen(("::", 81), 16), listen_unix("\0pod", 3), time.sleep(100)], "pod1")
    time.sleep(1)
    client = start(lambda: wait_in_queue(("127.0.0.1", 80), 3, 0, time.monotonic() + 60), "pod1")
    time.sleep(20)
    metrics = daemon.metrics()
    wrong = differences(metrics, "pod1", {80, 81}, "pod1")
    if metrics.one("listenq_accept_queue_limit", netns="pod1", protocol="unix", address="@pod") != 3:
        wrong.append("no Unix listener @pod")
    expect("namespaces", wrong)
    # The kernel lists the id while the namespace exists.
    ip("netns", "set", "pod1", "77")
    stop([pid, client])
    ip("netns", "del", "pod1")
    ended = time.monotonic()
    while "nsid 77" in text_of(["/sbin/ip", "netns", "list-id"]) and time.monotonic() < ended + 20:
        time.sleep(0.5)
    took = time.monotonic() - ended
    expect("namespace_released", [] if took <= 10 else [f"alive {took:.0f} s after its end"], f"{took:.0f} s after its end")


def waits(daemon):
    """How long connections wait, and which of them have no client."""
    add_netns("waits")
    server = start(lambda: [listen(("127.0.0.1", 80), 32), time.sleep(100)], "waits")
    time.sleep(1)

    def clients():
        kept = connect(("127.0.0.1", 80), 9)
        time.sleep(6)
        for client in kept[:4]:
            client.close()
        time.sleep(60)

    began = time.monotonic()
    pid = start(clients, "waits")
    until(began + 20)
    # A gauge of the last scan: its age is between 0 and two scan intervals.
    oldest = abandoned = None
    for _ in range(20):
        metrics = daemon.metrics()
        waited = time.monotonic() - began
        oldest = metrics.one("listenq_accept_queue_oldest_seconds", netns="waits", port="80")
        abandoned = metrics.one("listenq_accept_queue_abandoned", netns="waits", port="80")
        if abandoned == 4:
            break
        time.sleep(1)
    expect("waits", [] if oldest is not None and waited - 11 <= oldest <= waited + 0.5 else [f"oldest {oldest} s, waited {waited:.1f} s"],
           f"{oldest} s of {waited:.1f} s")
    expect("abandoned", [] if abandoned == 4 else [f"{abandoned}, not 4"])
    stop([server, pid])


def mptcp(daemon):
    """MPTCP connections that the server closed, and whose clients stay, do not count as waiting."""
    try:
        listen(("127.0.0.1", 7009), 4, protocol=MPTCP).close()
    except OSError as error:
        report("mptcp_closed", "absent", f"this kernel has no MPTCP: {error}")
        report("mptcp_empty", "absent", f"this kernel has no MPTCP: {error}")
        return
    add_netns("mptcp")
    begin = time.monotonic() + 3
    # One port whose server answers, one whose server does not. Clients wait for 0.7 s at most, and stay for 60 s.
    pids = [start(lambda: serve_rounds(listen(LOCAL, 32, protocol=MPTCP), 0.7, begin + 100, b"hello"), "mptcp"),
            start(lambda: serve_rounds(listen(SILENT, 32, protocol=MPTCP), 0.7, begin + 100), "mptcp")]
    pids += [start(lambda address=address: [come(address, 4, 60, begin, begin + 30, MPTCP), time.sleep(60)], "mptcp") for address in (LOCAL, SILENT)]
    wrong, oldest = [], 0
    while time.monotonic() < begin + 29:
        metrics = daemon.metrics("listenq_accept_queue_oldest", "listenq_listener_diagnosis")
        waits = metrics.all("listenq_accept_queue_oldest_seconds", netns="mptcp")
        oldest = max([oldest, *(value for _, value in waits)])
        wrong += [f"diagnosis {labels['diagnosis']} at port {labels['port']}" for labels, value
                  in metrics.all("listenq_listener_diagnosis", netns="mptcp") if value and labels["diagnosis"] not in str(wrong)]
        time.sleep(1)
    expect("mptcp_closed", wrong + ([f"oldest {oldest:.1f} s where clients wait for 0.7 s"] if oldest > 1.5 else []), f"oldest {oldest:.1f} s")
    # No client waits now, and the clients of the closed connections are still there.
    time.sleep(8)
    metrics = daemon.metrics("listenq_accept_queue_")
    queues = [(labels["port"], metrics.one("listenq_accept_queue_length", netns="mptcp", port=labels["port"]), value)
              for labels, value in metrics.all("listenq_accept_queue_oldest_seconds", netns="mptcp")]
    wrong = [f"port {port}: length {length}, oldest {oldest} s" for port, length, oldest in queues if length or oldest]
    expect("mptcp_empty", wrong)
    stop(pids)


LOCAL, SILENT = ("127.0.0.1", 80), ("127.0.0.1", 81)


def stale_limit_server(begin):
    write("/proc/sys/net/core/somaxconn", 8)
    server = listen(LOCAL, 4096)
    until(begin + 8)
    write("/proc/sys/net/core/somaxconn", 512)
    serve_rounds(server, 0.7, begin + 90)


def half_stuck_group(begin):
    """A reuseport group of which one socket is not served."""
    stuck, served = listen(LOCAL, 8, reuseport=True), listen(LOCAL, 8, reuseport=True)
    accept_all(stuck)
    serve_fast(served, begin + 90)


def trouble_scenes(begin):
    """netns -> (server, clients), for each diagnosis."""
    end = begin + 80

    def accepts_then_stalls():
        server = listen(LOCAL, 16)
        serve_fast(server, begin + 8)
        time.sleep(100)

    def stalled_clients():
        come(LOCAL, 2, 1, begin, begin + 6)
        wait_in_queue(LOCAL, 3, begin + 10, end)

    def standing_clients():
        clients = wait_in_queue(LOCAL, 60, begin, begin + 0.1)
        come(LOCAL, 8, 60, begin, end)
        return clients

    return {
        "stalled": (accepts_then_stalls, stalled_clients),
        "slow_accept": (lambda: serve_at(listen(LOCAL, 8), 20, end), lambda: come(LOCAL, 40, 2, begin, end)),
        "short_queue": (lambda: serve_rounds(listen(LOCAL, 4), 0.7, end),
                        lambda: burst(LOCAL, 30, 3, [begin + 10, begin + 25, begin + 40])),
        "imbalance": (lambda: half_stuck_group(begin), lambda: come(LOCAL, 6, 40, begin, end)),
        "abandoned": (lambda: serve_at(listen(LOCAL, 64), 4, end), lambda: come(LOCAL, 12, 1, begin, end)),
        "standing_queue": (lambda: serve_at(listen(LOCAL, 512), 8, end), standing_clients),
        "stale_limit": (lambda: stale_limit_server(begin), lambda: burst(LOCAL, 14, 2, [begin + 15, begin + 25, begin + 35])),
        "syn_flood": (lambda: serve_fast(listen(LOCAL, 64), end), lambda: flood(80, 300, 10, begin)),
        "not_accepting": (lambda: [listen(LOCAL, 16), time.sleep(100)], lambda: wait_in_queue(LOCAL, 2, begin, end)),
        "none_healthy": (lambda: serve_fast(listen(LOCAL, 64), end), lambda: come(LOCAL, 15, 1, begin, end)),
    }


def cause_scenes(begin):
    """netns -> (server, clients, what happens to its cgroup or process), for causes with real controllers."""
    end = begin + 80

    def more(rate):
        return lambda: come(LOCAL, rate, 4, begin, end)

    return {
        "cpu_throttled": (lambda: burn(listen(LOCAL, 16), 0.004, end), more(20), lambda group, _: write(f"{group}/cpu.max", "2000 100000")),
        "memory_stall": (lambda: allocate(listen(LOCAL, 16), 16 << 20, end), more(10), lambda group, _: write(f"{group}/memory.high", 8 << 20)),
        "frozen": (lambda: serve_fast(listen(LOCAL, 16), end), more(4), lambda group, _: write(f"{group}/cgroup.freeze", 1)),
        "stopped": (lambda: serve_fast(listen(LOCAL, 16), end), more(4), lambda _, pid: os.kill(pid, signal.SIGSTOP)),
    }


def watch(daemon, end, diagnoses, causes, is_complete=lambda: False):
    """Records each diagnosis or cause that appears, until `end` or until all expected words have appeared."""
    while time.monotonic() < end and not is_complete():
        metrics = daemon.metrics("listenq_listener_diagnosis", "listenq_listener_cause")
        for name, seen in (("diagnosis", diagnoses), ("cause", causes)):
            for labels, value in metrics.all(f"listenq_listener_{name}"):
                if value == 1:
                    seen.setdefault(labels["netns"], set()).add(labels[name])
        time.sleep(3)


def besides(seen, name):
    """The words that appeared together with the expected word."""
    others = sorted(seen - {name})
    return f"also {', '.join(others)}" if others else ""


def troubles(daemon):
    begin = time.monotonic() + 12
    pids = []
    for name in trouble_scenes(0):
        add_netns(name)
    for name, (server, clients) in trouble_scenes(begin).items():
        pids += [start(server, name), start(clients, name)]
    diagnoses = {}
    expected = set(trouble_scenes(0)) - {"none_healthy"}
    # The healthy server is watched for as long as the slowest diagnosis takes.
    watch(daemon, begin + 70, diagnoses, {}, lambda: all(name in diagnoses.get(name, ()) for name in expected))
    for name in trouble_scenes(0):
        seen = diagnoses.get(name, set())
        right = not seen if name == "none_healthy" else name in seen
        expect(f"diagnosis_{name}", [] if right else [f"seen: {sorted(seen)}"], besides(seen, name))
    stop(pids)


def stalled_share(group):
    """The share of the last minute in which a process of the cgroup waited for memory."""
    with open(f"{CGROUPS}/{group}.service/memory.pressure") as file:
        return float(re.search(r"some .*avg60=(\S+)", file.read())[1]) / 100


def causes_of_trouble(daemon):
    begin = time.monotonic() + 8
    pids, changes = [], {}
    for name in cause_scenes(0):
        add_netns(name)
    for name, (server, clients, change) in cause_scenes(begin).items():
        group = f"{CGROUPS}/{name}.service"
        os.mkdir(group)
        pid = start(server, name, group)
        pids += [pid, start(clients, name)]
        changes[name] = lambda change=change, group=group, pid=pid: change(group, pid)
    diagnoses, causes, lacks = {}, {}, {}
    watch(daemon, begin + 10, diagnoses, causes)
    for name, change in changes.items():
        try:
            change()
        except OSError as error:
            lacks[name] = f"this kernel lacks the file: {error}"
    watch(daemon, begin + 60, diagnoses, causes, lambda: all(name in lacks or name in causes.get(name, ()) for name in changes))
    for name in cause_scenes(0):
        if name in lacks:
            report(f"cause_{name}", "absent", lacks[name])
            continue
        seen = causes.get(name, set())
        if name == "memory_stall" and name not in seen and (stalled := stalled_share(name)) < 0.1:
            report(f"cause_{name}", "absent", f"this kernel stalls the server for {stalled:.0%} of a minute only, although it exceeds memory.high")
            continue
        expect(f"cause_{name}", [] if name in seen else [f"seen: {sorted(seen)}, diagnoses: {sorted(diagnoses.get(name, []))}"],
               besides(seen, name))
        if name not in seen:
            print(text_of(["/bin/listenq", "explain", name, f"--control.socket=/tmp/control-{daemon.port}"]))
    write(f"{CGROUPS}/frozen.service/cgroup.freeze", 0)
    stop(pids)


def hold_connections(count, end):
    """Holds accepted connections and one waiting connection."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
    server, held = listen(LOCAL, 512), []
    for _ in range(count):
        held += connect(LOCAL, 1)
        held.append(server.accept()[0])
    held += connect(LOCAL, 1)
    until(end)


def walks(daemon):
    """Whether scans are spaced where scans of many connections delay other requests."""
    add_netns("walks")
    until_end = time.monotonic() + 60
    pid = start(lambda: hold_connections(4000, until_end), "walks")
    daemon.wait(lambda m: m.one("listenq_accept_queue_length", netns="walks", port="80") == 1, 60)
    slowest, asked = 0, 0
    for _ in range(40):
        took = query_times(200)
        slowest, asked = max(slowest, *took), asked + len(took)
        time.sleep(0.4)
    # Here a walk takes about a millisecond, and a request takes some tens of microseconds.
    delays = slowest > 800
    is_serial = "connection scans delay other socket dumps" in open(daemon.log.name).read()
    note = f"slowest of {asked} requests: {slowest:.0f} µs"
    expect("walks", ["scans are not spaced"] if delays and not is_serial else [], note)
    stop([pid])


def unprivileged():
    """The listeners of its own namespace, without any privilege."""
    daemon = Daemon(19602, user=65534)
    time.sleep(2)
    metrics = daemon.metrics()
    wrong = differences(metrics, None, {7101, 7103})
    for name in ("namespaces", "owners"):
        if feature(metrics, name) != 0:
            wrong.append(f"feature {name} is {feature(metrics, name)}")
    if feature(metrics, "sock_diag") != 1:
        wrong.append("no sock_diag")
    code, _ = daemon.stop()
    expect("unprivileged", wrong + ([f"exit status {code}"] if code else []))


def sample_cost(daemon, seconds):
    """CPU time of the whole daemon for each sample, in µs, and its memory in MiB."""
    first = daemon.metrics()
    time.sleep(seconds)
    last = daemon.metrics()
    cpu, samples = (last.one(name) - first.one(name) for name in ("process_cpu_seconds_total", "listenq_samples_total"))
    return cpu / samples * 1e6, last.one("process_resident_memory_bytes") / 2**20


def costs(daemon):
    """The daemon beside a bare dump, with few listeners and with 1,000."""
    few = dump_cost(1000)
    sample, _ = sample_cost(daemon, 15)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    held = [listen(("127.0.0.1", 20000 + n), 16) for n in range(1000)]
    time.sleep(20)
    many = dump_cost(200)
    loaded, memory = sample_cost(daemon, 10)
    report("cost", "value", f"{sample:.0f} / {few:.0f}")
    report("cost_1000", "value", f"{loaded:.0f} / {many:.0f}")
    report("memory", "value", f"{memory:.0f}")
    for server in held:
        server.close()


def memory_limit(group):
    events = dict(line.split() for line in open(f"{group}/memory.events"))
    wrong = [f"{name} {events[name]}" for name in ("oom", "oom_kill") if events.get(name, "0") != "0"]
    expect("memory_64m", wrong, f"memory.max reached {events.get('max')} times")


def main():
    report("kernel", "value", os.uname().release)
    held = []
    held += guarded("modules", missing_modules) or []
    for layout, prepare in (("v1", mount_v1), ("hybrid", mount_hybrid), ("v2", mount_v2)):
        guarded(f"owners_{layout}", owner_under, layout, prepare)
    group = f"{CGROUPS}/listenq"
    os.mkdir(group)
    limited = os.path.exists(f"{group}/memory.max")
    if limited:
        write(f"{group}/memory.max", 64 << 20)
    daemon = Daemon(19601, cgroup=group)
    for name, work in (("attribution", attribution), ("namespaces", namespaces), ("waits", waits), ("mptcp", mptcp)):
        guarded(name, work, daemon)
    guarded("walks", walks, daemon)
    guarded("agreement", agreement, daemon, held)
    guarded("unprivileged", unprivileged)
    guarded("causes", causes_of_trouble, daemon)
    guarded("troubles", troubles, daemon)
    for pid in list(children):
        stop([pid])
    guarded("costs", costs, daemon)
    if limited:
        guarded("memory", memory_limit, group)
    code, log = daemon.stop()
    print("\n".join(line for line in log.splitlines() if re.search("level=(warn|error)|panick", line))[-3000:])
    wrong = [f"exit status {code}"] if code else []
    wrong += [line[:200] for line in log.splitlines() if "panick" in line]
    wrong += [line[:200] for line in text_of(["/bin/dmesg"]).splitlines() if re.search(r"\bBUG\b|WARNING:|Oops", line)]
    expect("no_crash", wrong)
    report("end", "value", f"{time.monotonic():.0f} s")


main()
