// The configuration of the mixin, with the values from which alerts.yml and recording.yml in this directory are generated.
// Override any of them: (import 'mixin.libsonnet') + { _config+:: { fleetHosts: 20 } }
{
  _config+:: {
    // Selects the series of listenq.
    selector: 'job="listenq"',
    // The label of the cluster. It may be absent from the series. With another name, change alertmanager.yml, listenq.tmpl and
    // the dashboards too: docs/alerts.md has the command. Otherwise alerts of two clusters mute each other.
    clusterLabel: 'cluster',
    // Replicas of Prometheus that write to one storage differ in one of these labels. The rules drop them.
    replicaLabels: ['prometheus_replica', 'replica'],

    // The address of a runbook in alerts and on the dashboard Fleet; %s is the name of the alert. The daemon serves the runbooks
    // too:
    // 'http://{{ $labels.instance }}/runbooks/%s'
    runbookUrl: 'https://github.com/listenq/listenq/blob/main/deploy/runbooks/%s.md',
    // The address of Grafana, for instance 'https://grafana.example.com'. Empty: alerts have no link to a dashboard,
    // which saves Prometheus a quarter of the cost of their texts.
    dashboardUrl: '',

    // The number of hosts with trouble at one service from which one alert replaces the alerts about the hosts.
    fleetHosts: 5,
    // ClientsUnserved: seconds that the first connection has waited, and the number of abandoned connections.
    unservedSeconds: 30,
    unservedAbandoned: 8,
    // NearLimit: the share of the limit, and the smallest limit. Below it a few clients at once come near the limit.
    // The daemon names an owner from a share of 0.5 on, so a smaller share has no effect.
    nearLimitShare: 0.8,
    nearLimitMin: 16,
    // OverflowUnattributed: the number of overflows within five minutes.
    unattributedOverflows: 10,
    // The features (docs/privileges.md) whose absence alerts; a regular expression.
    features: '.+',

    // The names of the severities. With other names, change alertmanager.yml too: docs/alerts.md has the command. Otherwise pages
    // go to the receiver for notes.
    severities: { page: 'critical', warning: 'warning', info: 'info' },
    // By the name of an alert: another `for`, `keep_firing_for` or severity. ListenQueueManyHosts has the severity of the alerts
    // that it counts.
    'for': {},
    keepFiringFor: {},
    severity: {},
    // Labels for every alert. To route by team with the Prometheus operator, and alerts without a pod to the namespace monitoring:
    // { namespace: '{{ or $labels.k8s_namespace "monitoring" }}' }
    extraLabels: {},
    // Names of alerts that are left out.
    disabled: [],
  },
}
