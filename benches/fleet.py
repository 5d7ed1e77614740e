#!/usr/bin/env python3
"""Measures the cost of a fleet for a real Prometheus: simulates hosts, and times every shipped rule and every dashboard query.

    benches/fleet.py [HOSTS [LISTENERS]]                1000 hosts of 50 listeners by default
    benches/fleet.py templates [HOSTS [LISTENERS]] [--at-most=RATIO]
                                                        the texts of 2,500 firing alerts, with scrapes and evaluations; fails if the
                                                        rules with texts cost more than RATIO times the rules without texts

Needs `prometheus` and `promtool`, several gigabytes in the directory for temporary files, and several minutes.
"""

import contextlib
import http.server
import itertools
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
RULES = [ROOT / "deploy/prometheus" / name for name in ("alerts.yml", "recording.yml")]
ADDRESS = "127.0.0.1:19590"
SCRAPE = 15
SAMPLES = 24
# On one host in TROUBLED_HOSTS, one listener in IN_TROUBLE has a diagnosis.
IN_TROUBLE, TROUBLED_HOSTS = 50, 10
TURNS = 3

GAUGE, COUNTER = "gauge", "counter"
SERVICE = 'service="shop/web",process="nginx",unit="nginx.service",k8s_namespace="shop",k8s_pod="cart",k8s_container="web"'
OWNER = 'process="nginx",unit="nginx.service",container_id="",k8s_namespace="shop",k8s_pod="cart",k8s_container="web"'
FEATURES = ["sock_diag", "unix_diag", "namespaces", "owners", "cgroup", "kubelet", "scan"]
SOURCES = ["inet_diag", "unix_diag", "netstat", "snmp", "sysctl", "namespaces", "owners", "scan"]


def same(value):
    return lambda i: value


# The series of a listener: name, type, labels in addition to those of the listener, the healthy value and the value in trouble at sample i.
PER_LISTENER = [
    ("listenq_accept_queue_length", GAUGE, "", same(0), same(129)),
    ("listenq_accept_queue_limit", GAUGE, "", same(128), same(128)),
    ("listenq_accept_queue_peak_length", GAUGE, "", same(3), same(129)),
    ("listenq_accept_queue_fullest_ratio", GAUGE, "", same(0), same(1)),
    ("listenq_accept_queue_connection_seconds", COUNTER, "", same(0), lambda i: 1900.0 * i),
    ("listenq_accept_queue_full_seconds", COUNTER, "", same(0), lambda i: 14.0 * i),
    ("listenq_accept_queue_oldest_seconds", GAUGE, "", same(0), same(3.5)),
    ("listenq_accept_queue_abandoned", GAUGE, "", same(0), same(40)),
    ("listenq_accept_queue_drain_rate", GAUGE, "", None, same(37)),
    ("listenq_accept_queue_useful_limit", GAUGE, "", None, same(2220)),
    ("listenq_syn_queue_length", GAUGE, "", same(0), same(12)),
    ("listenq_listener_drops", COUNTER, "", same(0), lambda i: 900 * i),
    ("listenq_listener_overflows", COUNTER, "", same(0), lambda i: 500 * i),
    ("listenq_listener_sockets", GAUGE, "", same(1), same(1)),
    ("listenq_listener_info", GAUGE, OWNER, same(1), same(1)),
    ("listenq_listener_diagnosis", GAUGE, 'diagnosis="slow_accept"', None, same(1)),
    ("listenq_listener_incident", GAUGE, SERVICE, None, same(7)),
]
NETNS_COUNTERS = (
    "listen_drops tcp_req_q_full_do_cookies tcp_req_q_full_drop syncookies_sent syncookies_recv syncookies_failed "
    "tcp_fast_open_listen_overflow tcp_defer_accept_drop embryonic_rsts tcp_migrate_req_failure passive_opens "
    "attempt_fails unattributed_overflows unexposed_overflows"
)
NETNS_GAUGES = "somaxconn tcp_max_syn_backlog tcp_abort_on_overflow tcp_syncookies tcp_synack_retries scan_interval_seconds"
OF_NETNS = 'netns="host"'
# The series of a host: name, type, labels, the value at sample i, whose time is `at`.
PER_HOST = [
    ("up", GAUGE, "", lambda i, at: 1),
    ("process_start_time_seconds", GAUGE, "", lambda i, at: at - 86400),
    ("listenq_build_info", GAUGE, 'version="0.1.0",revision="0"', lambda i, at: 1),
    ("listenq_sample_interval_seconds", GAUGE, "", lambda i, at: 0.1),
    ("listenq_sample_interval_target_seconds", GAUGE, "", lambda i, at: 0.1),
    ("listenq_namespaces", GAUGE, 'state="inaccessible"', lambda i, at: 0),
    ("listenq_namespaces", GAUGE, 'state="sampled"', lambda i, at: 1),
    ("listenq_namespaces", GAUGE, 'state="omitted"', lambda i, at: 0),
    ("listenq_sockets", GAUGE, 'state="omitted"', lambda i, at: 0),
    ("listenq_listeners_omitted", GAUGE, "", lambda i, at: 0),
    ("listenq_unexposed_overflows", COUNTER, "", lambda i, at: 0),
    ("listenq_web_config_last_reload_successful", GAUGE, "", lambda i, at: 1),
    ("listenq_netns_info", GAUGE, OF_NETNS, lambda i, at: 1),
    ("listenq_netns_listen_overflows", COUNTER, OF_NETNS, lambda i, at: 500 * i),
    ("listenq_netns_sampled_seconds", COUNTER, OF_NETNS, lambda i, at: 15.0 * i),
    ("listenq_netns_last_sample_timestamp_seconds", GAUGE, OF_NETNS, lambda i, at: at),
    ("listenq_netns_scan_timestamp_seconds", GAUGE, OF_NETNS, lambda i, at: at),
    *((f"listenq_netns_{name}", COUNTER, OF_NETNS, lambda i, at: 0) for name in NETNS_COUNTERS.split()),
    *((f"listenq_netns_{name}", GAUGE, OF_NETNS, lambda i, at: 1) for name in NETNS_GAUGES.split()),
    *(("listenq_feature_available", GAUGE, f'feature="{name}"', lambda i, at: 1) for name in FEATURES),
    *(("listenq_sample_errors", COUNTER, f'source="{name}"', lambda i, at: 0) for name in SOURCES),
]


def instance(host):
    return f'job="listenq",instance="host-{host:04}:19511"'


def listeners(hosts, count):
    """The labels of every listener, and whether the listener is in trouble."""
    for host in range(hosts):
        for n in range(count):
            address = f'protocol="tcp",address="10.0.{host // 256}.{host % 256}",port="{8000 + n}"'
            trouble = n % IN_TROUBLE == 0 and host % TROUBLED_HOSTS == 0
            yield f'{instance(host)},netns="host",{address}', trouble


def joined(*labels):
    return ",".join(part for part in labels if part)


def families(hosts, count, times):
    """Every family as its name, its type and its lines; families with the same name follow each other."""
    for name, kind, extra, well, ill in PER_LISTENER:
        suffix = "_total" if kind == COUNTER else ""
        yield name, kind, (
            f"{name}{suffix}{{{joined(labels, extra)}}} {value(i)} {at}\n"
            for labels, trouble in listeners(hosts, count)
            if (value := ill if trouble else well)
            for i, at in enumerate(times)
        )
    for name, kind, extra, value in PER_HOST:
        suffix = "_total" if kind == COUNTER else ""
        yield name, kind, (
            f"{name}{suffix}{{{joined(instance(host), extra)}}} {value(i, at)} {at}\n"
            for host in range(hosts)
            for i, at in enumerate(times)
        )


def make_blocks(directory, hosts, count, times):
    """Writes the fleet as OpenMetrics and converts it to blocks; returns the number of series."""
    text, series, last = directory / "fleet.txt", 0, None
    with open(text, "w") as out:
        for name, kind, lines in families(hosts, count, times):
            if name != last:
                out.write(f"# TYPE {name} {kind}\n")
            last = name
            for line in lines:
                out.write(line)
                series += 1
        out.write("# EOF\n")
    promtool("create-blocks-from", "openmetrics", text, directory / "data")
    text.unlink()
    return series // len(times)


def record(directory, end):
    """Makes blocks from the results of the recording rules for the last minute."""
    span = [f"--start={end - 60}", f"--end={end}", f"--eval-interval={SCRAPE}s"]
    into = [f"--url=http://{ADDRESS}", f"--output-dir={directory}/data"]
    promtool("create-blocks-from", "rules", *span, *into, *RULES)


def promtool(*arguments):
    subprocess.run(["promtool", "tsdb", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def prometheus(directory):
    """A Prometheus with the shipped rules, which it must not evaluate by itself during the measurement."""
    files = json.dumps([str(path) for path in RULES])
    (directory / "prometheus.yml").write_text(f"global: {{evaluation_interval: 1d}}\nrule_files: {files}\n")
    command = ["prometheus", f"--config.file={directory}/prometheus.yml", "--log.level=error"]
    command += [f"--storage.tsdb.path={directory}/data", f"--web.listen-address={ADDRESS}"]
    # The fleet's samples are old, so that they are in a block, which Prometheus must not delete during the measurement.
    command += ["--storage.tsdb.retention.time=10y"]
    running = subprocess.Popen(command)
    try:
        await_ready()
        yield running
    finally:
        running.terminate()
        running.wait()


def await_ready():
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://{ADDRESS}/-/ready").close()
            return
        except OSError:
            time.sleep(0.5)
    sys.exit("prometheus is not ready")


def ask(path, **parameters):
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"http://{ADDRESS}{path}?{query}", timeout=300) as answer:
        return json.load(answer)["data"]


def processor_seconds(process):
    """The CPU seconds that a process has used so far."""
    threads = pathlib.Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


class Meter:
    """Times queries at the end of the fleet's data."""

    def __init__(self, process, end):
        self.process, self.end = process, end

    def time(self, expr, is_range=False):
        """The median CPU seconds, the median elapsed seconds, and the number of series in the result."""
        processor, clock = [], []
        for _ in range(TURNS):
            begin = processor_seconds(self.process), time.monotonic()
            if is_range:
                # The query covers an hour in steps of 15 s; the fleet has data for only the last minutes of it.
                span = {"start": self.end - 3600, "end": self.end, "step": SCRAPE}
                found = ask("/api/v1/query_range", query=expr, **span)
            else:
                found = ask("/api/v1/query", query=expr, time=self.end)
            processor.append(processor_seconds(self.process) - begin[0])
            clock.append(time.monotonic() - begin[1])
        return sorted(processor)[TURNS // 2], sorted(clock)[TURNS // 2], len(found["result"])

    def report(self, title, queries):
        """Prints the cost of each query, and the sum. A query is a name, an expression, and whether it is a range query."""
        print(f"\n{title}\n{'processor':>11} {'clock':>10} {'series':>7}")
        total = [0, 0]
        for name, expr, is_range in queries:
            processor, clock, found = self.time(expr, is_range)
            total = [total[0] + processor, total[1] + clock]
            print(f"{processor * 1000:8.0f} ms {clock * 1000:7.0f} ms {found:7} {name}")
        print(f"{total[0] * 1000:8.0f} ms {total[1] * 1000:7.0f} ms         all of them, one after the other")


def rules():
    """The shipped rules by group. The metrics of each rule must exist, because a query for missing metrics costs nothing."""
    names = {name + ("_total" if kind == COUNTER else "") for name, kind, *_ in PER_LISTENER + PER_HOST}
    for group in ask("/api/v1/rules")["groups"]:
        for rule in group["rules"]:
            asked = set(re.findall(r"(?<![\w:])(?:listenq|process)_\w+(?![\w:])", rule["query"]))
            if asked - names:
                sys.exit(f"{rule['name']} asks for what the fleet has not: {asked - names}")
        yield group["name"], [(rule["name"], rule["query"], False) for rule in group["rules"]]


def dashboard(uid, **values):
    """The queries of a dashboard with its variables filled in. A variable without a value is "All"."""
    panels = json.loads((ROOT / f"dashboards/{uid}.json").read_text())["panels"]
    for panel in itertools.chain(panels, *(row.get("panels", []) for row in panels)):
        for target in panel.get("targets", []):
            filled = {"job": "listenq", **values}
            expr = re.sub(r'"\$(\w+)"', lambda variable: f'"{filled.get(variable[1], ".*")}"', target["expr"])
            expr = expr.replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$__interval", "15s")
            yield f"{panel['title']} {target['refId']}", expr, target.get("range", False)


# === The cost of the texts of alerts ===

# Alerts that fire: Overflowing and Overflowed at each listener in trouble.
ALERTS, ALERTS_PER_LISTENER = 2500, 2
METRICS = "127.0.0.1:19591"
# The number of targets of Prometheus, each with the metrics of many hosts.
TARGETS = 20
# Seconds until all alerts fire, and seconds of a measurement. Both are multiples of the interval.
BEFORE, MEASURED = 105, 6 * SCRAPE
TEXTS = ["summary", "description", "runbook_url", "dashboard"]


def troubled_lines(labels, scrape):
    for name, kind, extra, _, ill in PER_LISTENER:
        extra = extra.replace("slow_accept", "short_queue")
        suffix = "_total" if kind == COUNTER else ""
        yield f"{name}{suffix}{{{joined(labels, extra)}}} {ill(scrape)}\n"


def calm_lines(labels):
    for name, kind, extra, well, _ in PER_LISTENER:
        if well:
            suffix = "_total" if kind == COUNTER else ""
            yield f"{name}{suffix}{{{joined(labels, extra)}}} {well(0)}\n"


def serve_fleet(hosts, count):
    """Serves the metrics of all hosts. Only the metrics of listeners in trouble change."""
    every = hosts * count * ALERTS_PER_LISTENER // ALERTS
    calm, troubled = [[] for _ in range(TARGETS)], [[] for _ in range(TARGETS)]
    for nth, (labels, _) in enumerate(listeners(hosts, count)):
        target = nth // count % TARGETS
        if nth % every == 0:
            troubled[target].append(labels)
        else:
            calm[target].extend(calm_lines(labels))
    for host in range(hosts):
        start = f"process_start_time_seconds{{{instance(host)}}} 1\nup{{{instance(host)}}} 1\n"
        calm[host % TARGETS].append(start)
    calm = ["".join(lines).encode() for lines in calm]
    begin = time.monotonic()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            target, scrape = int(self.path[1:]), int(time.monotonic() - begin)
            changing = "".join(line for labels in troubled[target] for line in troubled_lines(labels, scrape))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(calm[target])
            self.wfile.write(changing.encode())

        def log_message(self, *_):
            pass

    host, port = METRICS.split(":")
    server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return sum(len(of) for of in troubled)


def without_texts(text):
    """The rules without the annotations of alerts."""
    lines = text.splitlines(keepends=True)
    is_text = lambda line: re.match(rf" +(annotations|{'|'.join(TEXTS)}):", line)
    return "".join(itertools.filterfalse(is_text, lines))


def with_links(text):
    """The rules with links to the dashboards, as the mixin generates them with the address of Grafana."""
    link = "https://grafana.example.com/d/listenq-listener/listenq-listener?{{ range $name, $value := $labels }}&var-{{ $name }}={{ urlquery $value }}{{ end }}"
    return re.sub(r"( +)runbook_url: .*\n", lambda line: f"{line[0]}{line[1]}dashboard: '{link}'\n", text)


def configure(directory, text):
    (directory / "alerts.yml").write_text(text)
    paths = "\n".join(
        f"- {{job_name: part{n}, honor_labels: true, metrics_path: /{n}, static_configs: [{{targets: ['{METRICS}']}}]}}"
        for n in range(TARGETS)
    )
    times = f"{{scrape_interval: {SCRAPE}s, scrape_timeout: 14s, evaluation_interval: {SCRAPE}s}}"
    config = f"global: {times}\nrule_files: [{directory}/alerts.yml]\nscrape_configs:\n{paths}\n"
    (directory / "prometheus.yml").write_text(config)


def evaluations():
    """The number of evaluations of the alerts. A busy machine misses some evaluations."""
    with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    count = lambda what: sum(float(n) for n in re.findall(rf'prometheus_rule_group_{what}_total{{rule_group=".*;listenq"}} (.*)', text))
    return count("iterations") - count("iterations_missed")


def measure(process, wait):
    """CPU seconds, evaluations, and the number of alerts that fire."""
    time.sleep(wait)
    begin, evaluated = processor_seconds(process), evaluations()
    time.sleep(MEASURED)
    cpu, evaluated = processor_seconds(process) - begin, evaluations() - evaluated
    found = ask("/api/v1/query", query='count(ALERTS{alertstate="firing", alertname!="ListenQueueManyHosts"})')["result"]
    return cpu, evaluated, int(found[0]["value"][1]) if found else 0


def time_templates(hosts, count, at_most):
    troubled = serve_fleet(hosts, count)
    print(f"{hosts} hosts of {count} listeners, {troubled} in trouble; CPU of the rules for one evaluation")
    text, used, scrapes = RULES[0].read_text(), [], 0
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        configure(directory, "groups: []")
        command = ["prometheus", f"--config.file={directory}/prometheus.yml", "--log.level=error"]
        command += [f"--storage.tsdb.path={directory}/data", f"--web.listen-address={ADDRESS}"]
        running = subprocess.Popen(command)
        try:
            await_ready()
            phases = [("scrapes alone", "groups: []", 30), ("rules without texts", without_texts(text), BEFORE)]
            phases += [("rules with texts", text, 20), ("rules with texts and links", with_links(text), 20)]
            for title, rules_text, wait in phases:
                configure(directory, rules_text)
                running.send_signal(signal.SIGHUP)
                cpu, evaluated, firing = measure(running, wait)
                if rules_text == "groups: []":
                    scrapes = cpu
                    continue
                used.append((cpu - scrapes) / evaluated)
                print(f"{title}: {used[-1]:.2f} s, {evaluated:.0f} evaluations, {firing} alerts fire")
        finally:
            running.terminate()
            running.wait()
    ratios = [cpu / used[0] for cpu in used[1:]]
    print(f"with texts / without: {ratios[0]:.2f}, with links too: {ratios[1]:.2f}")
    if ratios[0] > at_most:
        sys.exit(f"the texts cost too much: {ratios[0]:.2f} is more than {at_most}")


def main():
    sys.stdout.reconfigure(line_buffering=True)
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    hosts, count = numbers + [1000, 50][len(numbers) :]
    if "templates" in sys.argv:
        limits = [float(word.partition("=")[2]) for word in sys.argv if word.startswith("--at-most=")]
        return time_templates(hosts, count, limits[0] if limits else float("inf"))
    end = int(time.time()) // SCRAPE * SCRAPE - 3 * 3600
    times = [end - SCRAPE * (SAMPLES - 1 - i) for i in range(SAMPLES)]
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        series = make_blocks(directory, hosts, count, times)
        print(f"{hosts} hosts of {count} listeners: {series} series")
        # Rules use the results of other rules, and each round finds only what earlier rounds recorded.
        for _ in range(3):
            with prometheus(directory):
                record(directory, end)
        with prometheus(directory) as process:
            meter = Meter(process, end)
            for group, queries in rules():
                meter.report(f"rules of group {group}", queries)
            meter.report("Fleet", dashboard("listenq-fleet"))
            one = {"instance": "host-0000:19511", "netns": "host"}
            meter.report("Host", dashboard("listenq-host", **one))
            of = {"protocol": "tcp", "address": "10.0.0.0", "port": "8000"}
            meter.report("Listener", dashboard("listenq-listener", **one, **of))


if __name__ == "__main__":
    main()
