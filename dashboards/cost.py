#!/usr/bin/env python3
"""Measures what the Fleet dashboard costs a real Prometheus: a fleet of made-up hosts, every query of it, timed.

    dashboards/cost.py [HOSTS [LISTENERS]]        1000 hosts of 50 listeners unless told otherwise

Needs `prometheus` and `promtool`, some gigabytes below the directory for temporary files, and a few minutes.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).parent
ADDRESS = "127.0.0.1:19590"
SCRAPE = 15
SAMPLES = 24
# One listener in so many is in trouble, and one host in so many has such a listener.
IN_TROUBLE, TROUBLED_HOSTS = 50, 10
TURNS = 5

GAUGE, COUNTER = "gauge", "counter"
# What Fleet asks for: name, type, and the value of a listener in health and in trouble, as of sample i.
PER_LISTENER = [
    ("listenq_accept_queue_length", GAUGE, lambda i: 0, lambda i: 129),
    ("listenq_accept_queue_limit", GAUGE, lambda i: 128, lambda i: 128),
    ("listenq_accept_queue_oldest_seconds", GAUGE, lambda i: 0, lambda i: 3.5),
    ("listenq_accept_queue_abandoned", GAUGE, lambda i: 0, lambda i: 40),
    ("listenq_accept_queue_full_seconds", COUNTER, lambda i: 0, lambda i: 14.0 * i),
    ("listenq_listener_overflows", COUNTER, lambda i: 0, lambda i: 500 * i),
    ("listenq_listener_sockets", GAUGE, lambda i: 1, lambda i: 1),
]
PER_NETNS = [
    ("listenq_netns_listen_overflows", COUNTER, lambda i, at: 500 * i),
    ("listenq_netns_sampled_seconds", COUNTER, lambda i, at: 15.0 * i),
    ("listenq_netns_last_sample_timestamp_seconds", GAUGE, lambda i, at: at),
]


def listeners(hosts, count):
    """Labels of every listener, and whether it is in trouble."""
    for host in range(hosts):
        for n in range(count):
            labels = (
                f'job="listenq",instance="host-{host:04}:19511",netns="host",'
                f'protocol="tcp",address="10.0.{host // 256}.{host % 256}",port="{8000 + n}"'
            )
            yield labels, n, n % IN_TROUBLE == 0 and host % TROUBLED_HOSTS == 0


def families(hosts, count, times):
    """Every family as its name, its type and its lines."""
    for name, kind, well, ill in PER_LISTENER:
        suffix = "_total" if kind == COUNTER else ""
        lines = (
            f"{name}{suffix}{{{labels}}} {(ill if trouble else well)(i)} {at}\n"
            for labels, _, trouble in listeners(hosts, count)
            for i, at in enumerate(times)
        )
        yield name, kind, lines
    owner = 'process="nginx",unit="nginx.service",k8s_namespace="shop",k8s_pod="cart-'
    yield "listenq_listener_info", GAUGE, (
        f'listenq_listener_info{{{labels},{owner}{n}"}} 1 {at}\n'
        for labels, n, _ in listeners(hosts, count)
        for at in times
    )
    yield "listenq_listener_diagnosis", GAUGE, (
        f'listenq_listener_diagnosis{{{labels},diagnosis="slow_accept"}} 1 {at}\n'
        for labels, _, trouble in listeners(hosts, count)
        if trouble
        for at in times
    )
    job = [f'job="listenq",instance="host-{host:04}:19511"' for host in range(hosts)]
    for name, kind, value in PER_NETNS:
        suffix = "_total" if kind == COUNTER else ""
        yield name, kind, (
            f'{name}{suffix}{{{labels},netns="host"}} {value(i, at)} {at}\n'
            for labels in job
            for i, at in enumerate(times)
        )
    for name, extra, value in [
        ("up", "", 1),
        ("listenq_build_info", ',version="0.1.0",revision="0"', 1),
        ("listenq_namespaces", ',state="inaccessible"', 0),
        ("listenq_feature_available", ',feature="kubelet"', 0),
    ]:
        yield name, GAUGE, (f"{name}{{{labels}{extra}}} {value} {at}\n" for labels in job for at in times)


def make_blocks(directory, hosts, count, times):
    """Writes the fleet as OpenMetrics and turns it into blocks; says how many series there are."""
    text, series = directory / "fleet.txt", 0
    with open(text, "w") as out:
        for name, kind, lines in families(hosts, count, times):
            out.write(f"# TYPE {name} {kind}\n")
            for line in lines:
                out.write(line)
                series += 1
        out.write("# EOF\n")
    blocks = ["promtool", "tsdb", "create-blocks-from", "openmetrics", text, directory / "data"]
    subprocess.run(blocks, check=True, stdout=subprocess.DEVNULL)
    text.unlink()
    return series // len(times)


def ask(path, **parameters):
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"http://{ADDRESS}{path}?{query}", timeout=300) as answer:
        return json.load(answer)


def await_ready():
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://{ADDRESS}/-/ready").close()
            return
        except OSError:
            time.sleep(0.5)
    sys.exit("prometheus is not ready")


def measure(end):
    """Prints the median time of every query of Fleet, and their sum: what one look at it costs."""
    dashboard = json.loads((HERE / "listenq-fleet.json").read_text())
    total = 0
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"].replace('"$job"', '"listenq"').replace('"$instance"', '".*"')
            expr = expr.replace("$__rate_interval", "1m")
            took, found = time_query(expr, target.get("range"), end)
            total += took
            print(f"{took * 1000:8.0f} ms  {found:5} series  {panel['title']} {target['refId']}")
    print(f"{total * 1000:8.0f} ms  all of them, one after the other")


def time_query(expr, is_range, end):
    took = []
    for _ in range(TURNS):
        begin = time.monotonic()
        if is_range:
            # An hour is asked for in steps of 15 s; the fleet has only the last minutes of it.
            answer = ask("/api/v1/query_range", query=expr, start=end - 3600, end=end, step=SCRAPE)
        else:
            answer = ask("/api/v1/query", query=expr, time=end)
        took.append(time.monotonic() - begin)
    return sorted(took)[TURNS // 2], len(answer["data"]["result"])


def main():
    hosts, count = ([int(n) for n in sys.argv[1:]] + [1000, 50][len(sys.argv) - 1 :])[:2]
    end = int(time.time()) // SCRAPE * SCRAPE - 3 * 3600
    times = [end - SCRAPE * (SAMPLES - 1 - i) for i in range(SAMPLES)]
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        (directory / "prometheus.yml").write_text("{}\n")
        series = make_blocks(directory, hosts, count, times)
        print(f"{hosts} hosts of {count} listeners: {series} series")
        command = ["prometheus", f"--config.file={directory}/prometheus.yml", "--log.level=error"]
        command += [f"--storage.tsdb.path={directory}/data", f"--web.listen-address={ADDRESS}"]
        # The fleet is old so that it is a block: nothing may delete it meanwhile.
        command += ["--storage.tsdb.retention.time=10y"]
        prometheus = subprocess.Popen(command)
        try:
            await_ready()
            measure(end)
        finally:
            prometheus.terminate()
            prometheus.wait()


if __name__ == "__main__":
    main()
