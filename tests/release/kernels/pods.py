"""Forty pods with light traffic on a kernel with expensive dumps: listenq keeps sampling each of them within its CPU budget.

Booted with thash_entries=65536: a dump of all listeners then visits as many slots as on a machine with 128 GiB.
"""

import os
import subprocess
import sys
import time

sys.path.insert(0, "/programme")
from daemon import Daemon, Metrics, counters, dump_cost, expect, guarded, report
from scenes import add_netns, burst, children, connect, listen, start, stop, until

PODS = 40
PORTS = (8080, 8443, 9090)
# The default of --sample.cpu-budget, and the share of a core for the whole daemon: 2.5 %, and a tenth more for a single minute.
BUDGET, ALL = 0.02, 0.0275
RATE = 5
SETTLE, MEASURE, WATCH = 40, 40, 20


def pod(number):
    """Three listeners; a client comes every 0.4 s and waits for 20 ms."""
    servers = [listen(("127.0.0.1", port), 4 if port == 9090 else 128) for port in PORTS]
    time.sleep(0.01 * number)
    while True:
        for server in servers[:2]:
            client = connect(server.getsockname(), 1)[0]
            time.sleep(0.02)
            server.accept()[0].close()
            client.close()
            time.sleep(0.38)


def threads(pid):
    """Name -> seconds of CPU time of the daemon's threads."""
    used = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/comm") as comm, open(f"/proc/{pid}/task/{task}/schedstat") as stat:
            name = comm.read().strip()
            used[name] = used.get(name, 0) + int(stat.read().split()[0]) / 1e9
    return used


def cost(daemon):
    """The budget: samples, and the CPU time of the sampler and of the daemon, without scrapes in between."""
    samples = daemon.metrics().one("listenq_samples_total")
    before, begin = threads(daemon.process.pid), time.monotonic()
    time.sleep(MEASURE)
    after, took = threads(daemon.process.pid), time.monotonic() - begin
    rate = (daemon.metrics().one("listenq_samples_total") - samples) / took
    shares = {name: (after[name] - before.get(name, 0)) / took for name in after}
    sampler, whole = shares["sampler"], sum(shares.values())
    print("shares of a core:", {name: f"{share:.3%}" for name, share in shares.items()})
    report("pods_samples", "value", f"{rate:.1f}")
    report("pods_sampler", "value", f"{sampler:.2%}")
    report("pods_daemon", "value", f"{whole:.2%}")
    wrong = [f"the sampler uses {sampler:.2%} of a core"] if sampler > BUDGET else []
    expect("pods_budget", wrong + ([f"the daemon uses {whole:.2%}"] if whole > ALL else []))


def rate(daemon):
    """How often each pod is sampled. Scrapes come more often than samples, so that their timestamps show every sample."""
    begin, texts = time.monotonic(), [daemon.text()]
    while time.monotonic() - begin < WATCH:
        time.sleep(0.03)
        texts.append(daemon.text())
    took = time.monotonic() - begin
    samples = {}
    for text in texts:
        for pod, at in stamps(text).items():
            samples.setdefault(pod, set()).add(at)
    rates = sorted((len(of_pod) - 1) / took for of_pod in samples.values())
    print(f"{len(texts)} scrapes in {took:.1f} s; samples per second, sorted:", [round(rate, 1) for rate in rates])
    slowest = rates[0] if rates else 0.0
    report("pods_rate_value", "value", f"{slowest:.1f}")
    wrong = [f"{len(rates)} pods"] if len(rates) != PODS else []
    expect("pods_rate", wrong + ([f"one pod is sampled {slowest:.1f} times a second"] if slowest < RATE else []))


def stamps(text):
    """Pod -> time of its last sample."""
    name = "listenq_netns_last_sample_timestamp_seconds"
    return {labels["netns"]: at for labels, at in Metrics(text, (name,)).all(name) if labels["netns"].startswith("pod")}


def overflow(daemon):
    """Every overflow of a burst in one pod is attributed."""
    pid = start(lambda: burst(("127.0.0.1", 9090), 30, 3, [time.monotonic() + 1]), "pod7")
    time.sleep(15)
    kernel = counters("pod7")["ListenOverflows"]
    metrics = daemon.metrics("listenq_listener_overflows_total", "listenq_netns_listen_overflows_total")
    total = metrics.one("listenq_netns_listen_overflows_total", netns="pod7")
    own = metrics.one("listenq_listener_overflows_total", netns="pod7", port="9090")
    expect("pods_overflow", [] if kernel == total == own and kernel > 20 else [f"kernel {kernel}, listenq {total}, attributed {own}"],
           f"{kernel} overflows")
    stop([pid])


def main():
    report("kernel", "value", os.uname().release)
    os.rename("/lib/modules.hidden", "/lib/modules")
    for module in ("tcp_diag", "unix_diag"):
        subprocess.run(["/sbin/modprobe", module])
    for number in range(PODS):
        add_netns(f"pod{number}")
        start(lambda: pod(number), f"pod{number}")
    report("pods_dump", "value", f"{dump_cost(100):.0f}")
    daemon = Daemon(19601)
    if not daemon.metrics().rows:
        return
    until(time.monotonic() + SETTLE)
    for name, work in (("cost", cost), ("rate", rate), ("overflow", overflow)):
        guarded(name, work, daemon)
    for pid in list(children):
        stop([pid])
    print(daemon.stop()[1][-3000:])
    report("end", "value", f"{time.monotonic():.0f} s")


main()
