"""Tries the files of docs/recipes.md. tests/recipes.sh calls it, in the environment of tests/chart.sh.

    tests/recipes.py DIRECTORY      writes scaledobject.json there, for the check against the schema of KEDA
"""

import contextlib
import email
import email.policy
import http.server
import json
import pathlib
import re
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import kubernetes_validate
import yaml
from kubernetes_validate.utils import all_versions

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "deploy/prometheus"
RUNBOOKS = "https://github.com/listenq/listenq/blob/main/deploy/runbooks"
ALERTMANAGER = "127.0.0.1:19593"
# Seconds until a notification must have come.
TIMEOUT = 20


def blocks():
    """The code blocks of the page that begin with a name, by name, without it."""
    text = (ROOT / "docs/recipes.md").read_text()
    return {name: body for name, body in re.findall(r"```(?:yaml|text)\n# ([\w., ]+)\n(.*?)```", text, re.DOTALL)}


# === Notifications ===


class Web(http.server.BaseHTTPRequestHandler):
    """Receives what goes to PagerDuty and to Slack."""

    arrived = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.arrived.append((self.path, body))
        self.send_response(202 if self.path == "/pagerduty" else 200)
        self.end_headers()
        self.wfile.write(b'{"status": "success"}')

    def log_message(self, *_):
        pass


class Mail(socketserver.StreamRequestHandler):
    """Receives mail."""

    arrived = []
    ANSWERS = {b"DATA": b"354 go on", b"QUIT": b"221 bye"}

    def handle(self):
        self.say(b"220 localhost")
        for line in self.rfile:
            word = line.split()[0].upper()
            self.say(self.ANSWERS.get(word, b"250 ok"))
            if word == b"DATA":
                lines = iter(self.rfile.readline, b".\r\n")
                message = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                self.arrived.append(message)
                self.say(b"250 ok")

    def say(self, line):
        self.wfile.write(line + b"\r\n")


def receivers(page, web, mail):
    """The shipped configuration with the receivers of the page, which send to local servers and soon."""
    config = yaml.safe_load((SHIPPED / "alertmanager.yml").read_text()) | yaml.safe_load(page["receivers.yml"])
    config["templates"] = [str(SHIPPED / "listenq.tmpl")]
    pages, notes = config["receivers"]
    pages["pagerduty_configs"][0]["url"] = f"http://127.0.0.1:{web}/pagerduty"
    notes["slack_configs"][0]["api_url"] = f"http://127.0.0.1:{web}/slack"
    notes["email_configs"][0] |= {"smarthost": f"127.0.0.1:{mail}", "require_tls": False, "hello": "localhost"}
    hasten(config["route"])
    return config


def hasten(route):
    route |= {"group_wait": "1s", "group_interval": "2s"}
    for inner in route.get("routes", []):
        hasten(inner)


@contextlib.contextmanager
def serving(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@contextlib.contextmanager
def alertmanager(directory, config):
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    subprocess.run(["amtool", "check-config", path], check=True, stdout=subprocess.DEVNULL)
    command = ["prometheus-alertmanager", f"--config.file={path}", f"--storage.path={directory}/data", "--log.level=warn"]
    running = subprocess.Popen([*command, f"--web.listen-address={ALERTMANAGER}", "--cluster.listen-address="])
    try:
        soon(lambda: reached(f"http://{ALERTMANAGER}/-/ready"), "Alertmanager")
        yield
    finally:
        running.terminate()
        running.wait()


def reached(url, data=None):
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        return urllib.request.urlopen(request).status == 200
    except OSError:
        return False


def soon(look, what):
    """What `look` gives as soon as it gives anything."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise SystemExit(f"{what} did not come")


def alert(name, severity, summary, description, target, **labels):
    """An alert as Prometheus sends it, with the texts of the shipped rules."""
    common = {"alertname": f"ListenQueue{name}", "severity": severity, "cluster": "berlin", "job": "listenq"}
    texts = {"summary": summary, "description": f"{description} On web-1:19511: listenq explain '{target}'"}
    texts |= {"runbook_url": f"{RUNBOOKS}/ListenQueue{name}.md"}
    return {"labels": common | {"instance": "web-1:19511"} | labels, "annotations": texts}


PAGE = alert(
    "Overflowing",
    "critical",
    "php-fpm on web-1 refuses clients: CPU throttled",
    "Connection attempts that the kernel refused within two minutes, because the accept queue was full: 312. First: raise its CPU limit.",
    "host/127.0.0.1:9000",
    service="php-fpm",
)
WARNING = alert(
    "NearLimit",
    "warning",
    "nginx.service on web-1 comes near its queue limit",
    "The peak of the accept queue was 93 % of its limit, again and again for ten minutes. First: see the recommended limit with the command below.",
    "host/0.0.0.0:80",
    service="nginx.service",
)
# With another severity than in the shipped rules. It must not mute the page about the same listener.
NOTE = alert("Stalled", "warning", "php-fpm on web-1 accepts no clients", "", "host/127.0.0.1:9000", service="php-fpm")
FLEET = alert("ManyHosts", "critical", "php-fpm has trouble on 412 of 1000 hosts", "Hosts with alerts about php-fpm: 412.", "", service="php-fpm")


def send(*alerts):
    assert reached(f"http://{ALERTMANAGER}/api/v2/alerts", json.dumps(alerts).encode())


def ended(alert):
    return alert | {"endsAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def pagerduty(arrived):
    body = arrived["payload"]
    assert arrived["links"] == [{"href": f"{RUNBOOKS}/ListenQueueOverflowing.md", "text": "Runbook"}], arrived
    return f"{body['summary']}\n\n{body['custom_details']['text']}"


def slack(arrived):
    (attachment,) = arrived["attachments"]
    return f"{attachment['title']}\n\n{attachment['text']}"


def check_text(page, name, text):
    assert text.strip() == page[name].strip(), f"{name}: not as on the page:\n{text}"


def check_mail(page, message):
    assert message["Subject"] == page["slack"].splitlines()[0], message["Subject"]
    check_text(page, "mail", message.get_body(("plain",)).get_content().replace("\r\n", "\n"))
    html = message.get_body(("html",)).get_content()
    assert f'<a href="{RUNBOOKS}/ListenQueueNearLimit.md">Runbook</a>' in html, html
    assert "listenq explain &#39;host/0.0.0.0:80&#39;" in html, html


def next_to(path, after=0):
    """The next notification that arrives at a path, and how many there are then."""
    found = lambda: [body for at, body in Web.arrived if at == path][after:]
    return soon(found, f"a notification to {path}")[0]


def check_notifications(page):
    web, mail = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web), socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
    with tempfile.TemporaryDirectory() as name, serving(web) as web_port, serving(mail) as mail_port:
        with alertmanager(pathlib.Path(name), receivers(page, web_port, mail_port)):
            send(PAGE, WARNING, NOTE)
            check_text(page, "pagerduty", pagerduty(next_to("/pagerduty")))
            check_text(page, "slack", slack(next_to("/slack")))
            check_mail(page, soon(lambda: Mail.arrived, "a mail")[0])
            # The alert about all hosts has a notification of its own.
            send(FLEET, ended(WARNING))
            check_text(page, "slack, resolved", slack(next_to("/slack", 1)))
            title = next_to("/pagerduty", 1)["payload"]["summary"]
            assert title == "[FIRING] php-fpm has trouble on 412 of 1000 hosts, berlin", title


def rendered(name, status, *alerts):
    """What a template of listenq.tmpl makes of a group of alerts, in the cluster <b>."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"status": status, "alerts": alerts, "groupLabels": {"cluster": "<b>"}}, file)
        file.flush()
        command = ["amtool", "template", "render", f"--template.glob={SHIPPED}/listenq.tmpl", f"--template.data={file.name}"]
        command.append(f'--template.text={{{{ template "{name}" . }}}}')
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def check_templates():
    """The link belongs to the alert of the title, and Slack interprets no name of a process."""
    texts = {"summary": "<!channel> & co", "description": "a > b <@U1>", "runbook_url": "https://r.example/f"}
    firing = {"status": "firing", "annotations": texts}
    resolved = {"status": "resolved", "annotations": texts | {"runbook_url": "https://r.example/r"}}
    assert rendered("listenq.link", "firing", resolved, firing) == "https://r.example/f"
    assert rendered("listenq.link", "resolved", resolved) == "https://r.example/r"
    title = rendered("listenq.slack.title", "firing", resolved, firing, firing)
    assert title == "[FIRING] &lt;!channel&gt; &amp; co (1 of 2 alerts), &lt;b&gt;", title
    text = rendered("listenq.slack", "firing", firing, resolved)
    expected = "*&lt;!channel&gt; &amp; co*\na &gt; b &lt;@U1&gt;\n<https://r.example/f|Runbook>\nResolved: &lt;!channel&gt; &amp; co"
    assert text == expected, text


# === Autoscaling ===

LISTENER = 'job="listenq", instance="node-1:19511", netns="{netns}", protocol="tcp", address="::", port="80"'


def series(name, netns, values, **more):
    labels = [LISTENER.format(netns=netns), *(f'{label}="{value}"' for label, value in more.items())]
    return {"series": f"{name}{{{', '.join(labels)}}}", "values": values}


def check_autoscaling(page, directory):
    rule = yaml.safe_load(page["fullness.yml"])["groups"][0]["rules"][0]["record"]
    scaled = yaml.safe_load(page["scaledobject.yml"])
    (adapter,) = yaml.safe_load(page["adapter.yml"])["rules"]
    (pods, _) = (hpa := yaml.safe_load(page["hpa.yml"]))["spec"]["metrics"]
    assert adapter["name"]["as"] == pods["pods"]["metric"]["name"]
    assert adapter["seriesQuery"].startswith(rule + "{")
    given = {"Series": rule, "LabelMatchers": 'cluster="",namespace="shop",pod=~"cart-1|cart-2"', "GroupBy": "pod"}
    of_adapter = re.sub("<<.(\\w+)>>", lambda name: given[name[1]], adapter["metricsQuery"])
    of_pods = [{"labels": f'{{pod="cart-{n}"}}', "value": value} for n, value in ((1, 1), (2, 0.25))]
    pods_of = [("", "cart-1", 1), ("", "cart-2", 0.25), ("berlin", "cart-1", 0.75)]
    recorded = [{"labels": f'{rule}{{cluster="{cluster}", namespace="shop", pod="{pod}"}}', "value": v} for cluster, pod, v in pods_of]
    owner = {"k8s_namespace": "shop", "k8s_container": "web"}
    fullness, info = "listenq_accept_queue_fullest_ratio", "listenq_listener_info"
    tests = {
        "rule_files": ["fullness.yml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    series(fullness, "cart-1", "0x20 1 0.5x9"),
                    series(fullness, "cart-2", "0.25x30"),
                    series(fullness, "host", "1x30"),
                    series(info, "cart-1", "1x30", k8s_pod="cart-1", **owner),
                    series(info, "cart-2", "1x30", k8s_pod="cart-2", **owner),
                    series(info, "host", "1x30", process="sshd"),
                    # Another replica of Prometheus has the same listener, for a time with another process.
                    series(fullness, "cart-2", "0.25x30", replica="b"),
                    series(info, "cart-2", "1x30", k8s_pod="cart-2", replica="b", process="web", **owner),
                    # Another cluster has a pod of the same name.
                    series(fullness, "cart-1", "0.75x30", cluster="berlin"),
                    series(info, "cart-1", "1x30", k8s_pod="cart-1", cluster="berlin", **owner),
                ],
                "promql_expr_test": [
                    {"expr": rule, "eval_time": "6m", "exp_samples": recorded},
                    {"expr": of_adapter, "eval_time": "6m", "exp_samples": of_pods},
                    {
                        "expr": scaled["spec"]["triggers"][0]["metadata"]["query"].replace("{", '{cluster="", ', 1),
                        "eval_time": "6m",
                        "exp_samples": [{"labels": "{}", "value": 0.625}],
                    },
                ],
            }
        ],
    }
    (directory / "fullness.yml").write_text(page["fullness.yml"])
    (directory / "test.yml").write_text(yaml.safe_dump(tests))
    subprocess.run(["promtool", "check", "rules", directory / "fullness.yml"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["promtool", "test", "rules", directory / "test.yml"], check=True)
    for version in list(dict.fromkeys(all_versions()))[-3:]:
        kubernetes_validate.validate(hpa, version, strict=True)
    (directory / "scaledobject.json").write_text(json.dumps(scaled))


# === OpenTelemetry ===


def check_collector(page, directory):
    """Every pipeline uses what is configured, and the scrape configuration is valid for Prometheus."""
    collector = yaml.safe_load(page["collector.yml"])
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) == set(collector[kind]), f"{kind} {names}"
    (directory / "scrape.yml").write_text(yaml.safe_dump(collector["receivers"]["prometheus"]["config"]))
    subprocess.run(["promtool", "check", "config", directory / "scrape.yml"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    into, page = pathlib.Path(sys.argv[1]), blocks()
    check_autoscaling(page, into)
    check_collector(page, into)
    check_templates()
    check_notifications(page)
    print(f"{len(page)} blocks of docs/recipes.md")
