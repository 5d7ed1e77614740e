#!/usr/bin/env python3
"""Measures the time from the beginning of trouble to its page, for scrape and evaluation intervals of 15, 30 and 60 s.

    benches/page_time.py

For each interval a real Prometheus and Alertmanager with the shipped rules and configuration scrape simulated hosts, which
consist of metrics only. Trouble begins on one host after another, at every phase of the intervals. Takes six minutes.
"""

import contextlib
import http.server
import json
import pathlib
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent / "deploy/prometheus"
INTERVALS = [15, 30, 60]
HOSTS = 24
# The trouble of the first host begins after CALM seconds, when every target was scraped; the others follow every GAP seconds.
CALM, GAP = 70, 2.5
# The seconds that the daemon needs from the beginning of trouble to its diagnosis.
DIAGNOSIS = 11
RUN = 360
HOST = 'netns="host",protocol="tcp",address="::",port="80"'
# Half of the hosts stall, and the other half refuse clients.
KINDS = [("Stalled", "stalled", 0), ("Overflowing", "slow_accept", 10)]


class Server(http.server.BaseHTTPRequestHandler):
    """Serves the metrics of every host, and receives the notifications."""

    begin = time.monotonic()
    paged = {}

    def do_GET(self):
        nth = int(self.path.rsplit("/", 1)[1])
        _, diagnosis, rate = KINDS[nth % 2]
        elapsed = time.monotonic() - self.begin - begins(nth)
        lines = [f"process_start_time_seconds 1\nlistenq_listener_overflows_total{{{HOST}}} {max(0, int(elapsed * rate))}\n"]
        if elapsed > DIAGNOSIS:
            lines.append(f'listenq_listener_diagnosis{{{HOST},diagnosis="{diagnosis}"}} 1\n')
        if elapsed > (DIAGNOSIS if rate == 0 else 0):
            lines.append(f'listenq_listener_incident{{{HOST},service="service-{nth}",process="x"}} 0\n')
        self.answer("".join(lines).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        at = time.monotonic() - self.begin
        for alert in body["alerts"]:
            labels = alert["labels"]
            if labels["severity"] == "critical":
                key = (int(self.path.split("/")[1]), int(labels["service"].split("-")[1]), labels["alertname"])
                self.paged.setdefault(key, at)
        self.answer(b"")

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def begins(nth):
    return CALM + GAP * nth


def start(stack, directory, interval, server):
    """Starts Prometheus and Alertmanager for one interval."""
    ports = 19610 + interval, 19710 + interval
    config = (ROOT / "alertmanager.yml").read_text().replace("127.0.0.1:9095/", f"{server}/{interval}/")
    (directory / "alertmanager.yml").write_text(config)
    targets = json.dumps([f"web-{nth}:1" for nth in range(HOSTS)])
    (directory / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: {interval}s, evaluation_interval: {interval}s}}
rule_files: [{ROOT}/alerts.yml]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{ports[1]}']}}]}}]}}
scrape_configs:
- job_name: listenq
  static_configs: [{{targets: {targets}}}]
  relabel_configs:
  - {{source_labels: [__address__], target_label: instance}}
  - {{source_labels: [__address__], regex: 'web-(.+):1', target_label: __metrics_path__, replacement: '/metrics/$1'}}
  - {{target_label: __address__, replacement: '{server}'}}
"""
    )
    prometheus = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    alertmanager = ["prometheus-alertmanager", f"--config.file={directory}/alertmanager.yml", "--cluster.listen-address="]
    alertmanager += [f"--storage.path={directory}/alertmanager"]
    for command, port in [(alertmanager, ports[1]), (prometheus, ports[0])]:
        command += ["--log.level=error", f"--web.listen-address=127.0.0.1:{port}"]
        running = subprocess.Popen(command)
        stack.callback(running.wait)
        stack.callback(running.terminate)


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.ExitStack() as stack:
        for interval in INTERVALS:
            directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            start(stack, directory, interval, f"127.0.0.1:{server.server_port}")
        time.sleep(RUN)
    for interval in INTERVALS:
        for kind, (alert, _, _) in enumerate(KINDS):
            at = [Server.paged.get((interval, nth, f"ListenQueue{alert}")) for nth in range(kind, HOSTS, 2)]
            took = sorted(page - begins(kind + 2 * nth) for nth, page in enumerate(at) if page)
            median, longest = took[len(took) // 2], took[-1]
            print(f"{interval} s: {alert} pages {len(took)} of {len(at)}, median {median:.0f} s, longest {longest:.0f} s")


if __name__ == "__main__":
    main()
