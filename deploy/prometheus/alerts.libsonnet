// The alerts and the recording rules that they need.
{
  local c = $._config,
  local levels = c.severities,
  local owner = 'service, process, unit, k8s_namespace, k8s_pod, k8s_container',
  // The rules of the chart have a placeholder in the place of each number.
  local text(value) = if std.isNumber(value) then '%g' % value else value,
  local vars = std.mapWithKey(function(_, value) text(value), c) {
    sel: c.selector,
    cluster: c.clusterLabel,
    reps: std.join(', ', c.replicaLabels),
    instance: c.clusterLabel + ', job, instance',
    listener: self.instance + ', netns, protocol, address, port',
    owner: owner,
    page: levels.page,
    warning: levels.warning,
  },

  // === The texts ===

  // Phrases for the causes by their numbers in docs/causes.md, and what to do first.
  local causes = [
    ['stopped by a signal', 'continue the process (kill -CONT PID) or detach the debugger'],
    ['cgroup frozen', 'thaw the cgroup or continue the container'],
    ['out of file descriptors', 'raise its descriptor limit'],
    ['at its connection limit', 'raise its connection limit or close idle connections'],
    ['idle clients hold its workers', 'shorten its keep-alive and request timeouts'],
    ['no process accepts', 'restart the process that holds the socket'],
    ['CPU throttled', 'raise its CPU limit'],
    ['starved of CPU', 'move other work away from this host'],
    ['hypervisor takes the CPU', 'move the virtual machine'],
    ['one thread uses a whole CPU', 'run more processes or threads that accept'],
    ['memory stall', 'raise its memory limit'],
    ['waits for a disk', 'find the slow disk'],
    ['waits for one peer', 'examine the peer that it waits for'],
    ['waits for a lock', 'find the holder of the lock, or restart it'],
  ],
  // The value of an alert about a listener is a whole number plus a hundredth of the cause's number. This is cheaper than a
  // query in each template, of which an incident evaluates thousands. A cause as a label would restart the alert.
  //
  // A text costs by its annotations and its actions, of which Prometheus parses each at every evaluation (docs/fleet.md). One
  // string with all phrases takes less time than a list, and slice() takes less than a regular expression: the last three
  // characters of the value, such as ".07", begin the entry of the cause. A number without an entry gives the empty text.
  local ofCause(texts) =
    local entries = [';.%02d=%s' % [number, texts[number]] for number in std.range(0, std.length(texts) - 1) if texts[number] != ''];
    '{{ reReplaceAll (printf "^.*;%s=|;.*" (slice (printf "%16.2f" $value) 13)) "" "' + std.join('', entries) + ';" }}',
  local whyClause = ofCause([''] + [': ' + cause[0] for cause in causes]),
  local number = '{{ printf "%.0f" $value }}',
  local host = '{{ stripPort $labels.instance }}',
  local who = '{{ $labels.service }} on ' + host,

  // A listener as `listenq explain` takes it: one word of the shell, whatever the path of a Unix socket or the name of a
  // namespace contains. An IPv6 address needs no brackets there.
  local target = "'{{ reReplaceAll \"'\" `'\\''` (printf \"%s/%s\" $labels.netns $labels.address) }}{{ with $labels.port }}:{{ . }}{{ end }}'",
  local waited = '{{ if gt $value 1.0 }} The first client has waited for ' + number + ' s.{{ end }}',
  local pod = '{{ with $labels.k8s_pod }} Pod: {{ . }}.{{ end }}',
  local explain = " On {{ $labels.instance }}: listenq explain " + target,
  local first(advice) = ' First: ' + ofCause([advice] + [cause[1] for cause in causes]) + '.',
  // Numbers, what to do first, and the command for more, which names the listener.
  local ofListener(numbers, advice) = numbers + pod + first(advice) + explain,
  // One query for the alerts of which one listener has one at a time.
  local gauge(metric) = 'query (printf "' + metric + '{' + c.clusterLabel + '=%q, job=%q, instance=%q, netns=%q, protocol=%q, address=%q, port=%q}" $labels.' + c.clusterLabel + ' $labels.job $labels.instance $labels.netns $labels.protocol $labels.address $labels.port)',

  // === The rules ===

  // The variables of the dashboards have the names of the labels, and Grafana ignores labels without a variable. The cluster
  // may be a label that Prometheus adds only where it sends the alert.
  local board(name) = '/d/listenq-' + name + '/listenq-' + name + '?{{ range $name, $value := $labels }}&var-{{ $name }}={{ urlquery $value }}{{ end }}{{ if not $labels.' + c.clusterLabel + ' }}{{ with $externalLabels.' + c.clusterLabel + ' }}&var-' + c.clusterLabel + '={{ urlquery . }}{{ end }}{{ end }}',

  local record(name, expr) = { record: name, expr: expr % vars },
  local override(map, name, default) = std.get(map, name, default),
  local alert(name, level, expr, summary, description, wait=null, keep='2m', about='listener') =
    local full = 'ListenQueue' + name;
    local pending = override(c['for'], full, wait);
    local keeps = override(c.keepFiringFor, full, keep);
    {
      alert: full,
      expr: expr % vars,
      [if pending != null then 'for']: pending,
      [if keeps != null then 'keep_firing_for']: keeps,
      labels: { severity: override(c.severity, full, level) } + c.extraLabels,
      annotations: {
        summary: summary,
        description: description,
        runbook_url: std.strReplace(c.runbookUrl, '%s', full),
        [if c.dashboardUrl != '' then 'dashboard']: c.dashboardUrl + board(about),
      },
    },
  local enabled(rules) = std.filter(function(rule) !std.member(c.disabled, std.get(rule, 'alert', '')), rules),

  // A diagnosis, with the owner as labels, the wait of the first client and the cause as value.
  local diagnosed(matcher) = |||
    max without (diagnosis, %(reps)s) (
      listenq_listener_diagnosis{%(sel)s, diagnosis%(matcher)s} == 1
    )
    * on (%(listener)s) group_left (%(owner)s)
    listener:listenq_listener_incident:wait{%(sel)s}
  ||| % (vars { matcher: matcher }),
  // A number per listener, with the owner as labels, and the cause in the value.
  local owned(number) = number + |||
    + on (%(listener)s) group_left (%(owner)s)
    listener:listenq_listener_incident:max{%(sel)s} / 100
  |||,

  // Values above 0 of a counter's growth. increase() ignores the first value of a new series (a container that overflows at
  // once), so that value is added, unless Prometheus or these rules have just started.
  local growth(counter, window, seconds) = |||
    (
      (
        %(counter)s{%(sel)s}
        unless %(counter)s{%(sel)s} offset %(window)s
        and on (%(instance)s) (
          instance:up:max{%(sel)s} offset %(window)s == 1
          or process_start_time_seconds{%(sel)s} > time() - %(seconds)d
        )
      )
      or increase(%(counter)s{%(sel)s}[%(window)s])
    ) > 0
  ||| % (vars { counter: counter, window: window, seconds: seconds }),

  // The number of hosts at which a service has alerts of one severity, plus a millionth of the number of all hosts. The
  // Kubernetes namespace is part of the service, and stays a label for routes by team.
  local fleet(severity) = |||
    (
      count by (%(cluster)s, job, service, k8s_namespace) (
        count by (%(instance)s, service, k8s_namespace) (
          ALERTS{%(sel)s, alertname=~"ListenQueue.+", alertname!="ListenQueueManyHosts", alertstate="firing", severity="%(severity)s", service!=""}
        )
      ) >= %(fleetHosts)s
    )
    + on (%(cluster)s, job) group_left ()
    count by (%(cluster)s, job) (instance:up:max{%(sel)s}) / 1e6
  ||| % (vars { severity: severity }),
  local manyHosts(severity) = alert(
    'ManyHosts',
    severity,
    fleet(severity),
    '{{ $labels.service }} has trouble on ' + number + ' of {{ reReplaceAll ".*[.]0*" "" (printf "%.6f" $value) }} hosts',
    'Hosts with alerts about {{ $labels.service }}: ' + number + '. Alerts:{{ range query (printf "count by (alertname) (ALERTS{job=%q, ' + c.clusterLabel + '=%q, service=%q, k8s_namespace=%q, alertstate=\\"firing\\", severity=\\"' + severity + '\\", alertname!=\\"ListenQueueManyHosts\\"})" $labels.job $labels.' + c.clusterLabel + ' $labels.service $labels.k8s_namespace) | sortByLabel "alertname" }} {{ .Labels.alertname }} {{ .Value }}{{ end }}. One cause is likely: look for a deployment, a shared database or a traffic peak first. Run listenq explain on one of the hosts.',
    // Longer than the alerts about the hosts, which would otherwise notify one by one when the trouble ends.
    keep='5m',
    about='fleet',
  ),

  local recorded = [
    // In a large fleet most of the cost is reading series, so these rules read each metric once and keep only the series
    // above 0: listeners that ever overflowed.
    record('instance:up:max', |||
      max without (%(reps)s) (up{%(sel)s})
    |||),
    record('listener:listenq_listener_overflows_total:max', |||
      max without (%(reps)s) (listenq_listener_overflows_total{%(sel)s} > 0)
    |||),
    record('netns:listenq_netns_unattributed_overflows_total:max', |||
      max without (%(reps)s) (listenq_netns_unattributed_overflows_total{%(sel)s} > 0)
    |||),
    record('listener:listenq_accept_queue_oldest_seconds:max', |||
      max without (%(reps)s) (listenq_accept_queue_oldest_seconds{%(sel)s} > 0)
    |||),
    // One series per listener, also while the replicas of Prometheus have seen different owners.
    record('listener:listenq_listener_incident:max', |||
      topk by (%(listener)s) (1, max without (%(reps)s) (listenq_listener_incident{%(sel)s}))
    |||),
    // The seconds that the first client of a listener in trouble has waited, plus a hundredth of the cause's number.
    record('listener:listenq_listener_incident:wait', |||
      listener:listenq_listener_incident:max{%(sel)s} / 100
      + on (%(listener)s) group_left ()
      (
        round(listener:listenq_accept_queue_oldest_seconds:max{%(sel)s})
        or on (%(listener)s) 0 * listener:listenq_listener_incident:max{%(sel)s}
      )
    |||),
    // Overflows within a window.
    record('listener:listenq_listener_overflows:increase2m', growth('listener:listenq_listener_overflows_total:max', '2m', 120)),
    record('listener:listenq_listener_overflows:increase5m', growth('listener:listenq_listener_overflows_total:max', '5m', 300)),
    record('netns:listenq_netns_unattributed_overflows:increase5m', growth('netns:listenq_netns_unattributed_overflows_total:max', '5m', 300)),
  ],

  local pages = [
    // The diagnosis itself needs 10 s without an accepted connection.
    alert(
      'Stalled',
      levels.page,
      diagnosed('="stalled"'),
      who + ' accepts no clients' + whyClause,
      ofListener('No connection was accepted for 30 s or longer.' + waited, 'restart it if it does not recover'),
      wait='20s',
    ),
    // A diagnosis holds for up to 40 s after the last overflow, so a single burst of less than 5 s does not last for 1m.
    // The daemon keeps the diagnosis, so this does not depend on the times of the scrapes.
    alert(
      'Overflowing',
      levels.page,
      owned(|||
        (
          round(listener:listenq_listener_overflows:increase2m{%(sel)s})
          and on (%(listener)s)
          listenq_listener_diagnosis{%(sel)s, diagnosis=~"imbalance|stalled|abandoned|slow_accept|short_queue"} == 1
        )
      |||),
      who + ' refuses clients' + whyClause,
      ofListener('Connection attempts that the kernel refused within two minutes, because the accept queue was full: ' + number + '.', 'add workers, or find what they wait for'),
      wait='1m',
    ),
    // A queue that is large enough never overflows, and its clients leave all the same.
    alert(
      'ClientsUnserved',
      levels.page,
      |||
        (
          max without (diagnosis, %(reps)s) (
            listenq_listener_diagnosis{%(sel)s, diagnosis=~"imbalance|abandoned|slow_accept|standing_queue"} == 1
          )
          and (
            max without (%(reps)s) (
              (listenq_accept_queue_abandoned{%(sel)s} >= %(unservedAbandoned)s) > 0.5 * listenq_accept_queue_length{%(sel)s}
            )
            or listener:listenq_accept_queue_oldest_seconds:max{%(sel)s} > %(unservedSeconds)s
            or max without (%(reps)s) (
              rate(listenq_accept_queue_full_seconds_total{%(sel)s, protocol="unix"}[2m]) > 0.5
            )
          )
        )
        * on (%(listener)s) group_left (%(owner)s)
        listener:listenq_listener_incident:wait{%(sel)s}
      |||,
      who + ' serves few of its clients' + whyClause,
      ofListener('Most waiting clients have left, or the first one waits too long, or a Unix socket refuses clients half of the time.' + waited, 'add workers, or find what they wait for'),
      wait='1m',
    ),
  ],

  // Alerts that precede pages, or that need work in office hours.
  local warnings = [
    // Not beside a page about the same listener, which mutes it, nor while the overflows of that page are within the window.
    alert(
      'Overflowed',
      levels.warning,
      owned(|||
        (
          round(listener:listenq_listener_overflows:increase5m{%(sel)s})
          unless on (%(listener)s)
          last_over_time(ALERTS{%(sel)s, alertname="ListenQueueOverflowing", alertstate="firing"}[5m])
        )
      |||),
      who + ' refused clients' + whyClause,
      ofListener('Connection attempts that the kernel refused within five minutes, because the accept queue was full: ' + number + '.', 'see the diagnosis and the recommended limit with the command below'),
      // An overflow every few minutes is one alert.
      keep='10m',
    ),
    alert(
      'SlowAccept',
      levels.warning,
      diagnosed('="slow_accept"'),
      who + ' accepts clients too slowly' + whyClause,
      ofListener('The accept queue was full for 20 % of the time or more.' + waited + ' A larger backlog would only make clients wait longer.', 'add workers, or find what they wait for'),
      wait='3m',
    ),
    alert(
      'StandingQueue',
      levels.warning,
      diagnosed('="standing_queue"'),
      who + ' makes every client wait' + whyClause,
      ofListener('The accept queue never empties.' + waited + ' A larger backlog would only make clients wait longer.', 'add workers, or find what they wait for'),
      wait='3m',
    ),
    alert(
      'Abandoned',
      levels.warning,
      diagnosed('="abandoned"'),
      who + ' loses clients that wait' + whyClause,
      ofListener('A quarter or more of the waiting clients have left.' + waited, 'add workers, or find what they wait for'),
      wait='2m',
    ),
    alert(
      'Imbalance',
      levels.warning,
      diagnosed('="imbalance"'),
      who + ' has one stuck socket of several' + whyClause,
      ofListener('One socket of the reuseport group is full or stuck while another is less than half full.' + waited, 'restart the worker that holds the stuck socket'),
      wait='1m',
    ),
    alert(
      'SynFlood',
      levels.warning,
      diagnosed('="syn_flood"'),
      who + ' has a SYN queue full of open handshakes',
      'Half-open handshakes: {{ with ' + gauge('listenq_syn_queue_length') + ' }}{{ . | first | value | printf "%.0f" }}{{ else }}many{{ end }}. The accept queue is not full, so the server is not too slow.' + pod + ' First: find the source addresses of the handshakes.' + explain,
      wait='1m',
    ),
    alert(
      'StaleLimit',
      levels.info,
      diagnosed('="stale_limit"'),
      who + ' keeps an old queue limit until it restarts',
      'Its limit is {{ with ' + gauge('listenq_accept_queue_limit') + ' }}{{ . | first | value | printf "%.0f" }}, {{ end }}an earlier value of somaxconn.' + pod + ' First: restart the server, so that it calls listen again.' + explain,
      wait='1m',
    ),
    alert(
      'OverflowUnattributed',
      levels.warning,
      |||
        round(netns:listenq_netns_unattributed_overflows:increase5m{%(sel)s}) > %(unattributedOverflows)s
      |||,
      'An unknown listener on ' + host + ' refused clients',
      'Namespace {{ $labels.netns }} of {{ $labels.instance }} had overflows within five minutes that could not be attributed to a listener: ' + number + '. A listener that was open for a few seconds may have closed before listenq saw it. First: look for restarts in that namespace, with listenq list on that host.',
      about='host',
    ),
  ],

  local where = '{{ with $labels.' + c.clusterLabel + ' }} in {{ . }}{{ else }}{{ if gt $value 1.0 }} outside the clusters{{ end }}{{ end }}',
  local itself = [
    alert(
      'ExporterDown',
      levels.warning,
      |||
        max without (%(reps)s) (up{%(sel)s}) == 0
      |||,
      'listenq on ' + host + ' cannot be scraped',
      'Prometheus could not scrape listenq at {{ $labels.instance }} for three minutes, and no alert about its listeners can fire. First: systemctl status listenq on that host, or the pod of that node.',
      wait='3m',
      about='host',
    ),
    // A job that service discovery no longer finds has no `up`. The second part finds one of several clusters, or the hosts
    // without the label of the cluster, and has the value 2.
    alert(
      'JobGone',
      levels.warning,
      |||
        absent(up{%(sel)s})
        or
        2 * (
          group by (%(cluster)s, job) (last_over_time(up{%(sel)s}[1h]))
          unless group by (%(cluster)s, job) (up{%(sel)s})
        )
      |||,
      'No listenq is scraped' + where,
      'Prometheus has no target{{ with $labels.job }} of the job {{ . }}{{ end }}' + where + ', so no alert about listeners there can fire. First: compare the job with the scrape configuration and the service discovery.',
      wait='10m',
      about='fleet',
    ),
    // A namespace that ended keeps its counters for five minutes, so this alert is pending for the last two of them.
    alert(
      'SampleStale',
      levels.warning,
      |||
        max without (%(reps)s) (
          increase(listenq_netns_sampled_seconds_total{%(sel)s}[3m]) == 0
          and listenq_netns_sampled_seconds_total{%(sel)s}
        )
      |||,
      'listenq on ' + host + ' no longer reads namespace {{ $labels.netns }}',
      'Namespace {{ $labels.netns }} of {{ $labels.instance }} gave no sample for several minutes, and its listeners are not watched. Failed readings within ten minutes:{{ range query (printf "increase(listenq_sample_errors_total{' + c.clusterLabel + '=%q, job=%q, instance=%q}[10m]) > 0" $labels.' + c.clusterLabel + ' $labels.job $labels.instance) }} {{ .Labels.source }} {{ .Value | printf "%.0f" }},{{ end }} no other source. First: read the log of listenq.',
      wait='3m',
      about='host',
    ),
    alert(
      'SamplingSlow',
      levels.info,
      |||
        max without (%(reps)s) (
          listenq_sample_interval_seconds{%(sel)s} > 2 * listenq_sample_interval_target_seconds{%(sel)s}
        )
      |||,
      'listenq on ' + host + ' samples less often than configured',
      'listenq at {{ $labels.instance }} takes a sample every {{ $value | humanizeDuration }}, more than twice the value of --sample.interval. It misses short bursts more often. Counters of the kernel are not affected. First: raise --sample.cpu-budget, or look for a lack of CPU on that host.',
      wait='10m',
      about='host',
    ),
    // The counter starts with the daemon, so its first value is no gap in the data.
    alert(
      'OverflowsUnexposed',
      levels.warning,
      |||
        max without (%(reps)s) (
          increase(listenq_unexposed_overflows_total{%(sel)s}[10m]) > 0
        )
      |||,
      'Listeners without series on ' + host + ' refused clients',
      'At {{ $labels.instance }} the kernel refused connection attempts within ten minutes at listeners that have no series: ' + number + '. No other alert names the listener. First: read the log of listenq, which has a line for each listener, or a summary by user, service or namespace.',
      keep=null,
      about='host',
    ),
    alert(
      'ListenersOmitted',
      levels.info,
      |||
        max without (state, %(reps)s) (
          listenq_listeners_omitted{%(sel)s} > 0
          or listenq_sockets{%(sel)s, state="omitted"} > 0
        )
      |||,
      'listenq on ' + host + ' leaves listeners out',
      'listenq at {{ $labels.instance }} leaves out listeners or sockets (' + number + '), because there are too many or because one user, service or namespace brings too many new ones. Listeners in trouble come first. First: raise --listener.max or --sockets.max, or exclude listeners.',
      wait='15m',
      keep=null,
      about='host',
    ),
    alert(
      'NamespacesOmitted',
      levels.info,
      |||
        max without (state, %(reps)s) (
          listenq_namespaces{%(sel)s, state=~"omitted|waiting"} > 0
        )
      |||,
      'listenq on ' + host + ' leaves namespaces out',
      'listenq at {{ $labels.instance }} has no series for network namespaces: ' + number + '. There are more than --netns.max, or one user other than root has very many. First: find whose they are (lsns -t net), then raise --netns.max or remove them.',
      wait='15m',
      keep=null,
      about='host',
    ),
    alert(
      'NamespacesInaccessible',
      levels.info,
      |||
        max without (state, %(reps)s) (
          listenq_namespaces{%(sel)s, state="inaccessible"} > 0
        )
      |||,
      'listenq on ' + host + ' may not enter some namespaces',
      'Network namespaces that listenq at {{ $labels.instance }} may not enter: ' + number + '. Their listeners are not sampled. First: give it CAP_SYS_ADMIN, or accept the gap.',
      wait='10m',
      about='host',
    ),
    alert(
      'WebConfigReloadFailed',
      levels.warning,
      |||
        max without (%(reps)s) (
          listenq_web_config_last_reload_successful{%(sel)s}
        ) == 0
      |||,
      'listenq on ' + host + ' keeps an old web configuration',
      'The last reload of --web.config.file failed at {{ $labels.instance }}, and the configuration before it stays in use. A certificate that was to be replaced may expire. First: read the error in the log of listenq.',
      wait='5m',
      about='host',
    ),
  ],

  // The share of a limit that a queue reaches. A limit below the minimum is excluded: a few clients at once come near it.
  local nearLimit = [
    alert(
      'NearLimit',
      levels.warning,
      owned(|||
        round(100 * (
          max without (%(reps)s) (
            (listenq_accept_queue_peak_length{%(sel)s} > %(nearLimitShare)s * %(nearLimitMin)s) / (listenq_accept_queue_limit{%(sel)s} >= %(nearLimitMin)s)
          ) > %(nearLimitShare)s
        ))
      |||),
      who + ' comes near its queue limit' + whyClause,
      ofListener('The peak of the accept queue was ' + number + ' % of its limit, again and again for ten minutes.', 'see the recommended limit with the command below'),
      wait='10m',
      keep='5m',
    ),
  ],

  local features = [
    alert(
      'FeatureLost',
      levels.warning,
      |||
        max without (%(reps)s) (
          listenq_feature_available{%(sel)s, feature=~"%(features)s"} == 0
          and max_over_time(listenq_feature_available{%(sel)s}[1d]) == 1
        )
      |||,
      'listenq on ' + host + ' lost the feature {{ $labels.feature }}',
      'listenq at {{ $labels.instance }} had the feature {{ $labels.feature }} within the last day and does not have it now. A privilege or a kernel module is missing. First: read the log of listenq, which names it.',
      wait='5m',
      about='host',
    ),
    alert(
      'FeatureMissing',
      levels.info,
      |||
        max without (%(reps)s) (
          listenq_feature_available{%(sel)s, feature=~"%(features)s"} == 0
          unless max_over_time(listenq_feature_available{%(sel)s}[1d]) == 1
        )
      |||,
      'listenq on ' + host + ' lacks the feature {{ $labels.feature }}',
      'The feature {{ $labels.feature }} of listenq at {{ $labels.instance }} never worked within the last day. A privilege or a kernel module is missing. First: read the log of listenq, which names it; or disable this alert where the feature is not wanted.',
      wait='1h',
      about='host',
    ),
  ],

  local groups = [
    // The fleet alerts come last: they count the alerts that fire.
    { name: 'listenq', rules: recorded + pages + warnings + [manyHosts(levels.page), manyHosts(levels.warning)] },
    { name: 'listenq-itself', rules: itself },
    // Longer intervals: this rule reads every listener,
    { name: 'listenq-near-limit', interval: '1m', rules: nearLimit },
    // and these rules read one day of data.
    { name: 'listenq-features', interval: '5m', rules: features },
  ],

  // === The check of the configuration ===

  local names = [rule.alert for group in groups for rule in group.rules if std.objectHas(rule, 'alert')],
  local unknown(field, used) = std.join('', [
    '\n_config.%s: there is no alert %s' % [field, name]
    for name in used
    if !std.member(names, name)
  ]),
  local faults = std.join('', [unknown(field, std.objectFields(c[field])) for field in ['for', 'keepFiringFor', 'severity']])
                 + unknown('disabled', c.disabled)
                 + (if c.selector == '' then '\n_config.selector is empty' else '')
                 + (
                   if std.objectHas(c.severity, 'ListenQueueManyHosts')
                   then '\n_config.severity: ListenQueueManyHosts has the severity of the alerts that it counts'
                   else ''
                 )
                 + (if std.objectHas(c.extraLabels, 'severity') then '\n_config.extraLabels: set severity instead of a label severity' else ''),

  prometheusAlerts+:: {
    assert faults == '' : faults,
    groups: [group { rules: enabled(group.rules) } for group in groups],
  },
}
