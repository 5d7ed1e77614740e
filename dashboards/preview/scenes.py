#!/usr/bin/env python3
"""Draws the dashboards for simulated fleets: `scenes.py [SCENE...]`, all scenes without an argument, into build/SCENE-*.png.

rest         20 hosts and six hours, without trouble
trouble      like rest, with six services in trouble
clusters     two clusters whose instances have the same names
namespaces   one host with 200 network namespaces

A scene consists of one sample per minute as OpenMetrics text, converted to blocks of a Prometheus together with the results of the
shipped rules. Needs prometheus, promtool and the packages that preview.sh needs.
"""

import contextlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
RULES = [HERE.parents[1] / "deploy/prometheus" / name for name in ("alerts.yml", "recording.yml")]
ADDRESS = "127.0.0.1:19592"
STEP = 60
CAUSES = "stopped frozen descriptors connection_limit idle_clients nobody_accepts cpu_throttled cpu_starved".split()
FEATURES = "sock_diag unix_diag namespaces owners cgroup kubelet scan".split()
SOURCES = "inet_diag unix_diag netstat snmp sysctl namespaces owners scan".split()
BUCKETS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, "+Inf"]
SETTINGS = {"somaxconn": 4096, "tcp_max_syn_backlog": 2048, "tcp_abort_on_overflow": 0, "tcp_syncookies": 1, "tcp_synack_retries": 5}
RARE = (
    "tcp_req_q_full_do_cookies tcp_req_q_full_drop syncookies_sent syncookies_recv syncookies_failed "
    "tcp_fast_open_listen_overflow tcp_defer_accept_drop tcp_migrate_req_failure unattributed_overflows unexposed_overflows"
)


class Trouble:
    """Trouble from `begin` to `end`, as shares of the time range: a diagnosis, its cause, and refused connections per second."""

    def __init__(self, diagnosis, cause, begin, end, refused, every=None):
        self.diagnosis, self.cause, self.refused = diagnosis, cause, refused
        self.begin, self.end, self.every = begin, end, every

    def holds(self, share):
        if self.every and share < 1:
            share %= self.every
        elif self.every:
            share = self.end
        return self.begin <= share <= self.end


class Writer:
    """Writes series as OpenMetrics."""

    def __init__(self, out, end, minutes):
        self.out, self.times = out, [end - STEP * i for i in reversed(range(minutes + 1))]

    def shares(self):
        return [i / (len(self.times) - 1) for i in range(len(self.times))]

    def gauge(self, name, labels, values):
        text = ",".join(f'{name}="{value}"' for name, value in labels.items() if value != "")
        for at, value in zip(self.times, values):
            if value is not None:
                self.out.write(f"{name}{{{text}}} {value:.14g} {at}\n")

    def constant(self, name, labels, value):
        self.gauge(name, labels, [value] * len(self.times))

    def counter(self, name, labels, rates, first=0):
        total, values = first, []
        for rate in rates:
            total += rate * STEP
            values.append(total)
        self.gauge(name, labels, values)


def listener(writer, of, chance, owner, port, limit, rate, trouble):
    """Writes the series of one listener; returns its refusals per second at each time."""
    key = {**of, "protocol": "tcp", "address": "0.0.0.0", "port": str(port)}
    if port == 0:
        key |= {"protocol": "unix", "address": "/run/php/php8.2-fpm.sock", "port": ""}
    holds = [trouble is not None and trouble.holds(share) for share in writer.shares()]
    few = lambda: chance.choice([0, 0, 0, 0, 1])
    length = [limit + 1 if h and trouble.refused > 2 else min(3, limit) if h else few() for h in holds]
    full = [0.9 if h and trouble.diagnosis != "short_queue" else 0.06 if h else 0 for h in holds]
    refused = [trouble.refused * chance.uniform(0.8, 1.1) if h else 0 for h in holds]
    only = lambda value: [value() if h else None for h in holds]
    write = writer.gauge
    write("listenq_accept_queue_length", key, length)
    writer.constant("listenq_accept_queue_limit", key, limit)
    write("listenq_accept_queue_peak_length", key, [limit + 1 if h else max(x, chance.choice([0, 1, 2, 5])) for h, x in zip(holds, length)])
    write("listenq_accept_queue_fullest_ratio", key, [x / (limit + 1) for x in length])
    writer.counter("listenq_accept_queue_connection_seconds_total", key, [x * 0.95 for x in length])
    writer.counter("listenq_accept_queue_full_seconds_total", key, full)
    write("listenq_accept_queue_oldest_seconds", key, [limit / 40 * chance.uniform(0.9, 1.1) if h and x > limit else 0 for h, x in zip(holds, length)])
    write("listenq_accept_queue_abandoned", key, [limit // 3 if h and x > limit else 0 for h, x in zip(holds, length)])
    writer.constant("listenq_listener_sockets", key, 1)
    writer.constant("listenq_listener_info", {**key, **owner}, 1)
    if port:
        write("listenq_syn_queue_length", key, [chance.randint(3, 9) if h else 0 for h in holds])
        writer.counter("listenq_listener_drops_total", key, [r * 1.05 for r in refused])
        writer.counter("listenq_listener_overflows_total", key, refused)
    if trouble is None:
        return [0.0] * len(holds)
    was = [any(holds[max(0, i - 5) : i + 1]) for i in range(len(holds))]
    write("listenq_listener_diagnosis", {**key, "diagnosis": trouble.diagnosis}, [float(h) if w else None for h, w in zip(holds, was)])
    number = CAUSES.index(trouble.cause) + 1 if trouble.cause else 0
    if number:
        write("listenq_listener_cause", {**key, "cause": trouble.cause}, [float(h) if w else None for h, w in zip(holds, was)])
    service = f'{owner["k8s_namespace"]}/{owner["process"]}' if owner.get("k8s_namespace") else owner["unit"] or owner["process"]
    write("listenq_listener_incident", {**key, **owner, "service": service, "container_id": ""}, [number if w else None for w in was])
    write("listenq_accept_queue_drain_rate", key, only(lambda: chance.uniform(9, 11)))
    write("listenq_accept_queue_useful_limit", key, only(lambda: chance.uniform(90, 110)))
    write("listenq_accept_queue_client_patience_seconds", key, only(lambda: chance.uniform(9, 10)))
    write("listenq_accept_queue_abandoned_ratio", key, only(lambda: chance.uniform(0.3, 0.5)))
    writer.counter("listenq_listener_abandoned_total", key, [4 if h else 0 for h in holds])
    write("listenq_listener_open_connections", key, only(lambda: 512))
    write("listenq_owner_open_fds", key, only(lambda: chance.randint(540, 560)))
    write("listenq_owner_max_fds", key, only(lambda: 1024))
    writer.counter("listenq_owner_cpu_throttled_seconds_total", key, [0.85 if h and trouble.cause == "cpu_throttled" else 0 for h in holds])
    writer.counter("listenq_owner_cpu_wait_seconds_total", key, [0.9 if h else 0 for h in holds])
    if holds[-1]:
        begin = next(at for at, h in zip(reversed(writer.times), reversed(holds)) if not h) + 2 * STEP
        alert = {"stalled": "ListenQueueStalled", "short_queue": "ListenQueueOverflowed"}.get(trouble.diagnosis, "ListenQueueOverflowing")
        labels = {**key, "service": service, "alertname": alert, "severity": "warning" if "ed" == alert[-2:] and alert[-3] == "w" else "critical"}
        write("ALERTS_FOR_STATE", labels, [begin if at >= begin else None for at in writer.times])
        write("ALERTS", {**labels, "alertstate": "firing"}, [1 if at >= begin + 60 else None for at in writer.times])
    return refused


def netns(writer, of, chance, rate, owner, listeners):
    """Writes the series of a namespace and its listeners."""
    each = [listener(writer, of, chance, *one) for one in listeners]
    refused = [sum(rates) for rates in zip(*each)]
    wave = [rate * (1 + 0.3 * chance.random()) for _ in writer.times]
    writer.constant("listenq_netns_info", {**of, **owner}, 1)
    writer.counter("listenq_netns_listen_overflows_total", of, refused, first=17)
    writer.counter("listenq_netns_listen_drops_total", of, [r * 1.02 for r in refused], first=23)
    writer.counter("listenq_netns_passive_opens_total", of, wave)
    writer.counter("listenq_netns_accepted_total", of, wave)
    writer.counter("listenq_netns_attempt_fails_total", of, [w * 0.002 for w in wave])
    writer.counter("listenq_netns_embryonic_rsts_total", of, [0.02] * len(wave))
    writer.counter("listenq_netns_sampled_seconds_total", of, [0.999] * len(wave))
    for name in RARE.split():
        writer.counter(f"listenq_netns_{name}_total", of, [0] * len(wave))
    for name, value in SETTINGS.items():
        writer.constant(f"listenq_netns_{name}", of, value)
    writer.gauge("listenq_netns_last_sample_timestamp_seconds", of, [at - chance.uniform(0.01, 0.12) for at in writer.times])
    writer.gauge("listenq_netns_scan_timestamp_seconds", of, [at - chance.uniform(1, 4) for at in writer.times])
    writer.constant("listenq_netns_scan_interval_seconds", of, chance.uniform(1, 5))


def host(writer, scope, chance, namespaces, restart=None):
    """Writes the series of one instance itself."""
    times = writer.times
    start = [times[0] - 86400 if restart is None or share < restart else times[int(restart * len(times))] for share in writer.shares()]
    writer.constant("up", scope, 1)
    writer.gauge("process_start_time_seconds", scope, start)
    writer.constant("listenq_build_info", {**scope, "version": "0.1.0", "revision": "7b5f573"}, 1)
    for state, count in (("sampled", namespaces), ("inaccessible", 0), ("omitted", 0)):
        writer.constant("listenq_namespaces", {**scope, "state": state}, count)
    for state, count in (("tracked", namespaces * 4), ("omitted", 0)):
        writer.constant("listenq_sockets", {**scope, "state": state}, count)
    for feature in FEATURES:
        writer.constant("listenq_feature_available", {**scope, "feature": feature}, 1)
    for source in SOURCES:
        writer.counter("listenq_sample_errors_total", {**scope, "source": source}, [0] * len(times))
    for name, value in (("sample_interval_seconds", 0.101), ("sample_interval_target_seconds", 0.1), ("listeners_omitted", 0)):
        writer.gauge(f"listenq_{name}", scope, [value * chance.uniform(1, 1.02) for _ in times])
    for name, value in (("samples", 9.9), ("samples_missed", 0.01), ("scan_rows", 12), ("unexposed_overflows", 0), ("log_lines_dropped", 0)):
        writer.counter(f"listenq_{name}_total", scope, [value * chance.uniform(0.9, 1.1) for _ in times])
    for name in ("sample", "scan"):
        for i, le in enumerate(BUCKETS):
            writer.counter(f"listenq_{name}_duration_seconds_bucket", {**scope, "le": le}, [min(10, 6 + i)] * len(times))
    writer.counter("process_cpu_seconds_total", scope, [chance.uniform(0.004, 0.007) for _ in times])
    for name, value in (("open_fds", 23), ("max_fds", 20000), ("virtual_memory_bytes", 3e8), ("resident_memory_bytes", 1.4e7), ("threads", 5)):
        writer.constant(f"process_{name}", scope, value)


def unit(process, name=None):
    return {"process": process, "unit": name or f"{process}.service"}


SERVICES = [
    (unit("nginx"), 443, 511, 120),
    (unit("nginx"), 80, 511, 40),
    (unit("gunicorn", "shop-api.service"), 8000, 64, 30),
    (unit("php-fpm8.2"), 0, 128, 25),
    (unit("postgres", "postgresql@15-main.service"), 5432, 200, 3),
    (unit("redis-server"), 6379, 511, 15),
    (unit("sshd", "ssh.service"), 22, 128, 0.1),
]
# The trouble of each listener, by host and port.
IN_TROUBLE = {
    (1, 8000): Trouble("slow_accept", "cpu_throttled", 0.55, 1, 85),
    (2, 8000): Trouble("slow_accept", "cpu_throttled", 0.6, 1, 60),
    (3, 0): Trouble("stalled", "stopped", 0.93, 1, 3),
    (5, 443): Trouble("slow_accept", "descriptors", 0.78, 1, 240),
    (7, 6379): Trouble("short_queue", None, 0.13, 0.165, 1.5, every=1 / 6),
    (8, 5432): Trouble("slow_accept", "connection_limit", 0.2, 0.4, 22),
    (13, 80): Trouble("short_queue", None, 0.985, 1, 9),
    (13, 8000): Trouble("slow_accept", "idle_clients", 0.3, 0.33, 40),
}


def hosts(writer, count, trouble, cluster="", seed=1):
    for n in range(1, count + 1):
        chance = random.Random(100 * seed + n)
        scope = {"job": "listenq", "instance": f"web-{n:02}:19511", "cluster": cluster}
        found = [(owner, port, limit, rate, trouble.get((n, port))) for owner, port, limit, rate in SERVICES]
        netns(writer, {**scope, "netns": "host"}, chance, 200 + 5 * n, {}, found)
        host(writer, scope, chance, 1, restart=0.5 if trouble and n == 1 else None)


def rest(writer):
    hosts(writer, 20, {})


def trouble(writer):
    hosts(writer, 20, IN_TROUBLE)


def clusters(writer):
    hosts(writer, 8, IN_TROUBLE, "eu-west")
    other = {(1, 8000): Trouble("standing_queue", None, 0.4, 1, 0.5), (4, 443): Trouble("imbalance", "cpu_bound", 0.7, 1, 30)}
    CAUSES.extend(["cpu_steal", "cpu_bound"])
    hosts(writer, 8, other, "us-east", seed=2)


def namespaces(writer):
    apps = ["checkout", "search", "cart", "login", "images"]
    scope = {"job": "listenq", "instance": "10.0.0.7:19511", "node": "node-7"}
    for n in range(200):
        chance = random.Random(n)
        app = apps[n % len(apps)]
        pod = {"k8s_namespace": "shop", "k8s_pod": f"{app}-{7 * n + 4096:x}-{n:04x}q"}
        owner = {"process": app, "unit": "", **pod, "k8s_container": "app", "container_id": f"{n * 7919:012x}"}
        ill = Trouble("slow_accept", "cpu_throttled", 0.5 + n / 500, 1, 10 + n) if n % 25 == 3 else None
        burst = Trouble("short_queue", None, 0, 0.05, 1 + n / 100, every=0.2) if n % 25 == 11 else None
        listeners = [(owner, 8080, 128, 10, ill or burst), (owner, 9090, 128, 0.1, None)]
        netns(writer, {**scope, "netns": f"{n * 7919:012x}"}, chance, 20 + n / 4, pod, listeners)
    host(writer, scope, random.Random(0), 200)


# For each scene: the function that writes it, its minutes, and the listener to show.
WEB = {"netns": "host", "protocol": "tcp", "address": "0.0.0.0", "port": "8000"}
SCENES = {
    "rest": (rest, 360, {"instance": "web-01:19511", **WEB}),
    "trouble": (trouble, 360, {"instance": "web-01:19511", **WEB}),
    "clusters": (clusters, 360, {"cluster": "eu-west", "instance": "web-01:19511", **WEB}),
    "namespaces": (namespaces, 180, {"instance": "10.0.0.7:19511", **WEB, "netns": f"{3 * 7919:012x}", "port": "8080"}),
}


def promtool(*arguments):
    subprocess.run(["promtool", "tsdb", *arguments], check=True, stdout=subprocess.DEVNULL)


def make_blocks(directory, scene, end, minutes):
    text = directory / "scene.txt"
    with open(text, "w") as out:
        scene(Writer(out, end, minutes))
        out.write("# EOF\n")
    promtool("create-blocks-from", "openmetrics", text, directory / "data")
    text.unlink()


@contextlib.contextmanager
def prometheus(directory):
    (directory / "prometheus.yml").write_text("global: {scrape_interval: 1m}\n")
    command = ["prometheus", f"--config.file={directory}/prometheus.yml", "--log.level=error", "--storage.tsdb.retention.time=10y"]
    command += [f"--storage.tsdb.path={directory}/data", f"--web.listen-address={ADDRESS}"]
    running = subprocess.Popen(command)
    try:
        await_ready()
        yield
    finally:
        running.terminate()
        running.wait()


def await_ready():
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://{ADDRESS}/-/ready").close()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("prometheus is not ready")


def record(directory, end, minutes):
    """Adds the results of the recording rules. A rule finds only what earlier rounds recorded."""
    span = [f"--start={end - STEP * minutes}", f"--end={end}", f"--eval-interval={STEP}s"]
    for _ in range(3):
        with prometheus(directory):
            promtool("create-blocks-from", "rules", *span, f"--url=http://{ADDRESS}", f"--output-dir={directory}/data", *RULES)


def draw(name):
    scene, minutes, shown = SCENES[name]
    # The end is old enough that all samples are in blocks.
    end = int(time.time()) // 7200 * 7200 - 2 * 3600
    with tempfile.TemporaryDirectory() as created:
        directory = pathlib.Path(created)
        make_blocks(directory, scene, end, minutes)
        record(directory, end, minutes)
        variables = [f"{variable}={value}" for variable, value in shown.items()]
        with prometheus(directory):
            command = [HERE / "preview.sh", f"http://{ADDRESS}", str(minutes), f"END={end}", f"SCRAPE={STEP}", *variables]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for dashboard in ("fleet", "host", "listener"):
        picture = (HERE / f"build/{dashboard}.png").rename(HERE / f"build/{name}-{dashboard}.png")
        print(picture)


if __name__ == "__main__":
    for name in sys.argv[1:] or SCENES:
        draw(name)
