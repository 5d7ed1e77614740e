// The dashboard Host: all listeners and namespaces of one instance, and the state of listenq itself.
import type { Dashboard } from '@grafana/grafana-foundation-sdk/dashboard';

import { instance, type Line, link, make, marks, node, nodeLink, ownPage, podDashboard, type Section, several, toListener, toPod } from './dashboard.js';
import { bands, causeColumn, colored, type Column, diagnosisColumn, LIMIT, lines, linked, named, number, PER_SECOND, type Query, rows, sorted } from './panel.js';
import { ageOfSample, grewMost, highest, highestOfNetns, HOST, LISTENER, longest, NAMESPACES, ofOwner, orZero, rate, RESTARTS, shareRefused, worstDiagnosis } from './query.js';

const SILENT = 'This instance does not report: is it down, or is the selection above wrong?';
const NO_NAMESPACE = 'No namespace with this name reports: did it end, or is the selection above wrong?';
/** The number of namespaces for each counter of the kernel. */
const MOST_NAMESPACES = 5;
const OLD_KERNEL = 'This kernel does not have the counter, or no namespace is selected.';

export function host(): Dashboard {
    return make({
        uid: 'listenq-host',
        title: 'listenq / Host',
        about: 'One instance: all its listeners and namespaces, the counters and settings of its kernel, and the state of listenq itself.',
        variables: [
            instance(),
            several('netns', 'Namespace', `listenq_netns_info{${HOST}}`),
            several('process', 'Process', `listenq_listener_info{${NAMESPACES}}`),
            several('unit', 'Unit', `listenq_listener_info{${NAMESPACES}, process=~"$process"}`),
            podDashboard(),
            ...node(),
        ],
        links: [
            link('Fleet', 'listenq-fleet', ['cluster']),
            link('Listener', 'listenq-listener', ['cluster', 'instance']),
            nodeLink(),
            ownPage(),
        ],
        annotations: [
            marks('Alerts', `count by (alertname, netns) (ALERTS{alertname=~"ListenQueue.+", alertstate="firing", ${HOST}})`, '{{alertname}} {{netns}}', 'red'),
            marks('Restarts of listenq', RESTARTS.listenq, 'listenq restarted', 'blue'),
        ],
        sections: [now(), listeners(), namespaces(), kernel(), settingsOfAll(), itself()],
    });
}

function now(): Section {
    return {
        title: 'Now',
        lines: [
            {
                height: 4,
                panels: [
                    [3, troubled()],
                    [3, refused()],
                    [3, share()],
                    [3, waiting()],
                    [3, age()],
                    [3, sampled()],
                    [3, inaccessible()],
                    [3, omitted()],
                ],
            },
        ],
    };
}

function troubled() {
    const words = {
        title: 'Listeners in trouble',
        about: 'Listeners of the selected namespaces, processes and units with at least one diagnosis now.',
        unit: 'none',
        empty: SILENT,
    };
    const troubled = `count by (${LISTENER}) (listenq_listener_diagnosis{${NAMESPACES}} == 1)`;
    return number(words, orZero(`count(${ofOwner(troubled)})`, HOST), [[1, 'red']]);
}

function refused() {
    const words = {
        title: 'Refusals',
        about: 'Refusals per second in the selected namespaces because an accept queue was full (ListenOverflows). A client that tries again is refused again. The healthy value is 0.',
        unit: PER_SECOND,
        empty: NO_NAMESPACE,
    };
    return number(words, `sum(${rate('listenq_netns_listen_overflows_total', NAMESPACES)})`, [[0.001, 'red']]);
}

function share() {
    const words = {
        title: 'Attempts refused',
        about: 'Refusals / (refusals + connections established) in the selected namespaces. The healthy value is 0.',
        unit: 'percentunit',
        empty: NO_NAMESPACE,
    };
    return number(words, shareRefused(NAMESPACES, ''), [[0.00001, 'orange'], [0.01, 'red']]);
}

function waiting() {
    const words = {
        title: 'Connections waiting',
        about: 'Connections in the accept queues of the selected namespaces. A small number is normal; a large number that stays is not.',
        unit: 'none',
        empty: NO_NAMESPACE,
    };
    return number(words, `sum(listenq_accept_queue_length{${NAMESPACES}})`, []);
}

function sampled() {
    const words = {
        title: 'Namespaces sampled',
        about: 'Network namespaces whose listeners listenq samples.',
        unit: 'none',
        empty: SILENT,
    };
    return number(words, `sum(listenq_namespaces{${HOST}, state="sampled"})`, []);
}

function inaccessible() {
    const words = {
        title: 'Namespaces not seen',
        about: 'Network namespaces that exist but may not be entered. Their listeners are missing. listenq needs CAP_SYS_ADMIN and CAP_SYS_PTRACE for them.',
        unit: 'none',
        empty: SILENT,
    };
    return number(words, `sum(listenq_namespaces{${HOST}, state="inaccessible"})`, [[1, 'orange']]);
}

function omitted() {
    const words = {
        title: 'Listeners omitted',
        about: 'Listeners without series because of --listener.max. Their overflows count as unexposed.',
        unit: 'none',
        empty: SILENT,
    };
    return number(words, `sum(listenq_listeners_omitted{${HOST}})`, [[1, 'orange']]);
}

function age() {
    const words = {
        title: 'Age of the data',
        about: 'Age at the last scrape of the last good sample, for the selected namespace with the oldest one. From 10 s on its gauges are absent.',
        unit: 's',
        empty: NO_NAMESPACE,
    };
    return number(words, `max(${ageOfSample(NAMESPACES)})`, [[2, 'orange'], [10, 'red']]);
}

function listeners(): Section {
    return {
        title: 'Listeners',
        lines: [
            { height: 10, panels: [[24, allListeners()]] },
            { height: 6, panels: [[12, diagnoses()], [12, causes()]] },
            { height: 9, panels: [[12, fullest()], [12, refusalsByListener()]] },
        ],
    };
}

function allListeners() {
    const words = {
        title: 'All listeners',
        about: 'Every listener of the selected namespaces, processes and units now, the fullest first, with its owner. Click an address to see the listener, a pod to see the pod.',
        unit: 'none',
        empty: NO_NAMESPACE,
    };
    const labels = ['cluster', 'process', 'netns', 'address', 'port'];
    const more = ['protocol', 'unit', 'k8s_namespace', 'k8s_pod'];
    const info = `max by (${[...labels, ...more].join(', ')}) (listenq_listener_info{${NAMESPACES}, process=~"$process", unit=~"$unit"})`;
    const columns: Column[] = [
        { name: '', expr: info },
        diagnosisColumn(listenerMax(worstDiagnosis(NAMESPACES))),
        causeColumn(listenerMax(`listenq_listener_incident{${NAMESPACES}} > 0`)),
        { name: 'fullest', unit: 'percentunit', expr: listenerMax(`listenq_accept_queue_fullest_ratio{${NAMESPACES}}`), properties: colored([[0.8, 'orange'], [1, 'red']]) },
        { name: 'length', expr: listenerMax(`listenq_accept_queue_length{${NAMESPACES}}`) },
        { name: 'peak', expr: listenerMax(`listenq_accept_queue_peak_length{${NAMESPACES}}`) },
        { name: 'limit', expr: listenerMax(`listenq_accept_queue_limit{${NAMESPACES}}`) },
        { name: 'oldest wait', unit: 's', expr: listenerMax(`listenq_accept_queue_oldest_seconds{${NAMESPACES}}`) },
        { name: 'refusals', unit: PER_SECOND, expr: listenerMax(rate('listenq_listener_overflows_total', NAMESPACES)), properties: colored([[0.001, 'red']]) },
        { name: 'sockets', expr: listenerMax(`listenq_listener_sockets{${NAMESPACES}}`) },
    ];
    const table = rows(words, labels, columns, more);
    linked(table, 'k8s_pod', 'Show the pod', toPod());
    const url = toListener(['instance'], ['cluster', 'netns', 'protocol', 'address', 'port']);
    return sorted(linked(table, 'address', 'Show the listener', url), 'fullest');
}

function listenerMax(series: string): string {
    return `max by (cluster, netns, protocol, address, port) (${ofOwner(`(${series})`)})`;
}

function fullest() {
    const words = {
        title: 'Fullest listeners',
        about: 'Length / (limit + 1) of the fullest socket, for the ten listeners that were fullest in the time shown. At 100 % the next connection is turned away.',
        unit: 'percentunit',
        empty: 'Every queue was empty at every scrape.',
    };
    const expr = highest(10, 'listenq_accept_queue_fullest_ratio', NAMESPACES, ofOwner);
    return lines(words, [byListener(expr)], [[0.8, 'orange'], [1, 'red']]);
}

function refusalsByListener() {
    const words = {
        title: 'Refusals by listener',
        about: 'Refusals per second at the ten listeners with the most in the time shown, and those of no listener or of a listener without series. The sum over all listeners is the counter of the kernel.',
        unit: PER_SECOND,
        empty: 'No queue overflowed.',
    };
    const other = (metric: string) => `topk(5, ${rate(metric, NAMESPACES)}) > 0`;
    return lines(words, [
        byListener(grewMost(10, 'listenq_listener_overflows_total', NAMESPACES, ofOwner)),
        { name: '{{netns}} unattributed', expr: other('listenq_netns_unattributed_overflows_total') },
        { name: '{{netns}} unexposed', expr: other('listenq_netns_unexposed_overflows_total') },
    ]);
}

function diagnoses() {
    const words = {
        title: 'Diagnoses',
        about: 'Which listener had which diagnosis when, for the ten that lasted longest. A band that returns at the same time each day points to a scheduled job; a band that stays points to too little capacity or a hang.',
        unit: 'none',
        empty: 'No listener of these namespaces had a diagnosis.',
    };
    const query = { name: '{{netns}} {{address}} {{port}} {{diagnosis}}', expr: longest(10, 'listenq_listener_diagnosis', NAMESPACES, ofOwner) };
    return bands(words, query, named([0, 'over', 'transparent'], [1, 'holds', 'red']));
}

function causes() {
    const words = {
        title: 'Causes',
        about: 'When it was certain why an owner does not accept, for the ten causes that lasted longest. Causes are looked for only while the listener has a diagnosis.',
        unit: 'none',
        empty: 'No cause was certain within this time.',
    };
    const query = { name: '{{netns}} {{address}} {{port}} {{cause}}', expr: longest(10, 'listenq_listener_cause', NAMESPACES, ofOwner) };
    return bands(words, query, named([0, 'over', 'transparent'], [1, 'holds', 'orange']));
}

function byListener(expr: string): Query {
    return { name: '{{netns}} {{protocol}} {{address}} {{port}}', expr };
}

function namespaces(): Section {
    return {
        title: 'Namespaces',
        lines: [{ height: 9, panels: [[8, accepted()], [8, lengths()], [8, sharePerNetns()]] }],
    };
}

function settingsOfAll(): Section {
    return { title: 'Namespaces and their settings', collapsed: true, lines: [{ height: 12, panels: [[24, settings()]] }] };
}

function itself(): Section {
    return { title: 'listenq itself', collapsed: true, lines: [...sampling(), ...scanning(), ...leftOut(), ...health()] };
}

function sharePerNetns() {
    const words = {
        title: 'Attempts refused by namespace',
        about: 'Refusals / (refusals + connections established), for the ten namespaces with the highest share at each time. The healthy value is 0.',
        unit: 'percentunit',
        empty: NO_NAMESPACE,
    };
    return lines(words, [{ name: '{{netns}}', expr: `topk(10, ${shareRefused(NAMESPACES, 'by (cluster, netns) ')})` }]);
}

function settings() {
    const words = {
        title: 'Namespaces and their settings',
        about: 'Every selected namespace with its owner, the caps on its queues, and the age of its data. somaxconn applies at the next listen(2); tcp_max_syn_backlog does not cap the accept queue.',
        unit: 'none',
        empty: NO_NAMESPACE,
    };
    const labels = ['cluster', 'netns', 'container_id', 'k8s_namespace', 'k8s_pod'];
    const columns: Column[] = [
        { name: '', expr: `max by (${labels.join(', ')}) (listenq_netns_info{${NAMESPACES}})` },
        { name: 'listeners', expr: `count by (cluster, netns) (listenq_listener_sockets{${NAMESPACES}})` },
        setting('somaxconn'),
        setting('tcp_max_syn_backlog'),
        setting('tcp_abort_on_overflow'),
        setting('tcp_syncookies'),
        setting('tcp_synack_retries'),
        { name: 'age of sample', unit: 's', expr: `max by (cluster, netns) (${ageOfSample(NAMESPACES)})` },
        { name: 'age of scan', unit: 's', expr: `time() - max by (cluster, netns) (listenq_netns_scan_timestamp_seconds{${NAMESPACES}})` },
    ];
    return linked(rows(words, labels, columns), 'k8s_pod', 'Show the pod', toPod());
}

function setting(name: string): Column {
    return { name, expr: `max by (cluster, netns) (listenq_netns_${name}{${NAMESPACES}})` };
}

function accepted() {
    const words = {
        title: 'Connections accepted',
        about: 'Connections that servers took out of the TCP accept queues per second, for the ten namespaces with the most. A line at 0 while connections wait means that nothing is accepted.',
        unit: PER_SECOND,
        empty: 'Unknown: the kernel has no PassiveOpens, or MPTCP is in use there.',
    };
    return lines(words, [{ name: '{{netns}}', expr: grewMost(10, 'listenq_netns_accepted_total', NAMESPACES) }]);
}

function lengths() {
    const words = {
        title: 'Connections waiting and half-open',
        about: 'Connections in the accept queues, and half-open connections, summed over all listeners of a namespace, for the five namespaces with the most of each. Lines that climb and stay high are bad.',
        unit: 'none',
        empty: NO_NAMESPACE,
    };
    return lines(words, [
        { name: '{{netns}} waiting', expr: highestOfNetns(5, 'listenq_accept_queue_length', NAMESPACES) },
        { name: '{{netns}} half-open', expr: highestOfNetns(5, 'listenq_syn_queue_length', NAMESPACES) },
    ]);
}

function kernel(): Section {
    return {
        title: 'Kernel counters of the five namespaces with the most',
        lines: [
            { height: 8, panels: [[8, refusals()], [8, connections()], [8, synQueueFull()]] },
            { height: 8, panels: [[12, cookies()], [12, oddities()]] },
        ],
    };
}

function refusals() {
    const words = {
        title: 'Overflows and drops',
        about: 'ListenOverflows: refusals because an accept queue was full. ListenDrops: connection requests that failed for any reason, including overflows. Without overflows they are harmless.',
        unit: PER_SECOND,
        empty: OLD_KERNEL,
    };
    return lines(words, [counter('overflows', 'listen_overflows'), counter('drops', 'listen_drops')]);
}

function connections() {
    const words = {
        title: 'Connections',
        about: 'Connections established at listeners (PassiveOpens), and failed attempts, including outgoing ones (AttemptFails).',
        unit: PER_SECOND,
        empty: OLD_KERNEL,
    };
    return lines(words, [counter('established', 'passive_opens'), counter('failed', 'attempt_fails')]);
}

function synQueueFull() {
    const words = {
        title: 'SYN queue full',
        about: 'SYNs that met a full SYN queue. The kernel answered them with a cookie, or dropped them where cookies are off. The cause is a flood, or very many clients at once.',
        unit: PER_SECOND,
        empty: OLD_KERNEL,
    };
    return lines(words, [counter('cookie', 'tcp_req_q_full_do_cookies'), counter('dropped', 'tcp_req_q_full_drop')]);
}

function cookies() {
    const words = {
        title: 'SYN cookies',
        about: 'SYN cookies sent, valid cookies received, and ACKs with an invalid cookie. Sent far above received means a flood.',
        unit: PER_SECOND,
        empty: OLD_KERNEL,
    };
    return lines(words, [
        counter('sent', 'syncookies_sent'),
        counter('received', 'syncookies_recv'),
        counter('failed', 'syncookies_failed'),
    ]);
}

function oddities() {
    const words = {
        title: 'Mostly harmless',
        about: 'Resets of half-open connections (port scans), bare ACKs that TCP_DEFER_ACCEPT ignores, Fast Open requests over their limit, and connections lost when a reuseport member closed. Only the last one loses connections.',
        unit: PER_SECOND,
        empty: OLD_KERNEL,
    };
    return lines(words, [
        counter('resets while half-open', 'embryonic_rsts'),
        counter('deferred ACKs', 'tcp_defer_accept_drop'),
        counter('Fast Open over limit', 'tcp_fast_open_listen_overflow'),
        counter('lost in migration', 'tcp_migrate_req_failure'),
    ]);
}

/** A query for a counter of the kernel, in the namespaces where it grew most. */
function counter(name: string, word: string): Query {
    return { name: `{{netns}} ${name}`, expr: grewMost(MOST_NAMESPACES, `listenq_netns_${word}_total`, NAMESPACES) };
}

function sampling(): Line[] {
    return [
        { height: 8, panels: [[8, interval()], [8, missed()], [8, duration()]] },
        { height: 8, panels: [[8, credited()], [8, errors()], [8, features()]] },
    ];
}

function interval() {
    const words = {
        title: 'Sampling interval',
        about: 'Mean interval between samples, achieved and configured. Where it is longer than configured, sampling would cost more than --sample.cpu-budget, or the machine lacks CPU.',
        unit: 's',
        empty: SILENT,
    };
    return lines(words, [
        { name: 'achieved', expr: `listenq_sample_interval_seconds{${HOST}}` },
        { name: 'configured', expr: `listenq_sample_interval_target_seconds{${HOST}}` },
    ]).overrideByName('configured', LIMIT);
}

function missed() {
    const words = {
        title: 'Samples',
        about: 'Samples per second, and samples that were due while an earlier one ran or listenq got no CPU. With many missed samples listenq does not see bursts.',
        unit: PER_SECOND,
        empty: SILENT,
    };
    return lines(words, [
        { name: 'taken', expr: rate('listenq_samples_total', HOST) },
        { name: 'missed', expr: rate('listenq_samples_missed_total', HOST) },
    ]);
}

function duration() {
    const words = {
        title: 'Sample duration',
        about: 'Median and 99th percentile of the elapsed time. It grows with the number of listeners and namespaces, not with the number of connections.',
        unit: 's',
        empty: SILENT,
    };
    return lines(words, quantiles('listenq_sample_duration_seconds'));
}

function quantiles(histogram: string): Query[] {
    return [0.5, 0.99].map((q) => ({
        name: `p${q * 100}`,
        expr: `histogram_quantile(${q}, sum by (le) (${rate(`${histogram}_bucket`, HOST)}))`,
    }));
}

function credited() {
    const words = {
        title: 'Time covered by samples',
        about: 'Share of time that samples cover, for the ten namespaces with the least. Well below 100 % means stalls or suspends, and the time full only covers the rest.',
        unit: 'percentunit',
        empty: NO_NAMESPACE,
    };
    return lines(words, [{ name: '{{netns}}', expr: leastSampled() }]);
}

function leastSampled(): string {
    const metric = `listenq_netns_sampled_seconds_total{${NAMESPACES}}`;
    return `${rate('listenq_netns_sampled_seconds_total', NAMESPACES)} and bottomk(10, rate(${metric}[$__range] @ end()))`;
}

function errors() {
    const words = {
        title: 'Failed readings',
        about: 'Failed readings per source. A failure leaves the numbers of its source unchanged; if it persists they become stale. The healthy value is 0.',
        unit: PER_SECOND,
        empty: SILENT,
    };
    return lines(words, [{ name: '{{source}}', expr: rate('listenq_sample_errors_total', HOST) }], [[0.1, 'red']]);
}

function features() {
    const words = {
        title: 'Features',
        about: 'Which features work, and which lack a privilege or a kernel module. A feature that was not tried is not shown.',
        unit: 'none',
        empty: SILENT,
    };
    const states = named([0, 'missing', 'orange'], [1, 'works', 'green']);
    return bands(words, { name: '{{feature}}', expr: `listenq_feature_available{${HOST}}` }, states);
}

function scanning(): Line[] {
    return [{ height: 8, panels: [[8, scanInterval()], [8, scanDuration()], [8, scanRows()]] }];
}

function scanInterval() {
    const words = {
        title: 'Scan interval',
        about: 'Time between the last two connection scans, for the ten namespaces with the longest. Idle namespaces are scanned rarely; a namespace with a queue should be near --scan.interval.',
        unit: 's',
        empty: 'No namespace was scanned twice: scans may lack a privilege (see the panel Features).',
    };
    return lines(words, [{ name: '{{netns}}', expr: highest(10, 'listenq_netns_scan_interval_seconds', NAMESPACES) }]);
}

function scanDuration() {
    const words = {
        title: 'Scan duration',
        about: 'Median and 99th percentile of the elapsed time for one namespace. It grows with the connections of the whole machine; scans never use more than 1 % of a core.',
        unit: 's',
        empty: 'There was no scan: the feature may be missing (see the panel Features).',
    };
    return lines(words, quantiles('listenq_scan_duration_seconds'));
}

function scanRows() {
    const words = {
        title: 'Sockets listed by scans',
        about: 'Half-open and waiting connections that the kernel returned per second. Connections that it only walked over are not included.',
        unit: PER_SECOND,
        empty: SILENT,
    };
    return lines(words, [{ name: 'sockets', expr: rate('listenq_scan_rows_total', HOST) }]);
}

function leftOut(): Line[] {
    return [{ height: 8, panels: [[8, socketsByState()], [8, unexposed()], [8, logLines()]] }];
}

function socketsByState() {
    const words = {
        title: 'Sockets by state',
        about: 'Listen sockets that listenq tracks, and those that it omits because of --sockets.max. Omitted sockets have no numbers at all. The healthy number of omitted sockets is 0.',
        unit: 'none',
        empty: SILENT,
    };
    return lines(words, [{ name: '{{state}}', expr: `listenq_sockets{${HOST}}` }]);
}

function unexposed() {
    const words = {
        title: 'Overflows without series',
        about: 'Overflows per second of listeners that had no series when they happened, in all namespaces. If they persist, raise --listener.max. The healthy value is 0.',
        unit: PER_SECOND,
        empty: SILENT,
    };
    return lines(words, [{ name: 'overflows', expr: rate('listenq_unexposed_overflows_total', HOST) }]);
}

function logLines() {
    const words = {
        title: 'Log lines dropped',
        about: 'Log lines per second that listenq dropped because its standard error was not read in time. The healthy value is 0.',
        unit: PER_SECOND,
        empty: SILENT,
    };
    return lines(words, [{ name: 'dropped', expr: rate('listenq_log_lines_dropped_total', HOST) }]);
}

function health(): Line[] {
    return [
        { height: 8, panels: [[8, cpu()], [8, memory()], [8, descriptors()]] },
        { height: 4, panels: [[6, threads()], [6, uptime()], [6, webConfig()], [6, version()]] },
    ];
}

function cpu() {
    const words = {
        title: 'CPU',
        about: 'Share of one core. Sampling stays within --sample.cpu-budget (2 % by default), scans within 1 %.',
        unit: 'percentunit',
        empty: SILENT,
    };
    return lines(words, [{ name: 'used', expr: rate('process_cpu_seconds_total', HOST) }]);
}

function memory() {
    const words = {
        title: 'Memory',
        about: 'Resident memory grows with the number of listeners. Growth without more listeners is a leak. Virtual memory is address space, not usage.',
        unit: 'bytes',
        empty: SILENT,
    };
    return lines(words, [
        { name: 'resident', expr: `process_resident_memory_bytes{${HOST}}` },
        { name: 'virtual', expr: `process_virtual_memory_bytes{${HOST}}` },
    ]).overrideByName('virtual', [{ id: 'custom.hideFrom', value: { viz: true, legend: false, tooltip: false } }]);
}

function descriptors() {
    const words = {
        title: 'File descriptors',
        about: 'Open file descriptors and the limit of the process. Each namespace needs several. At the limit listenq cannot enter further namespaces.',
        unit: 'none',
        empty: SILENT,
    };
    return lines(words, [
        { name: 'open', expr: `process_open_fds{${HOST}}` },
        { name: 'limit', expr: `process_max_fds{${HOST}}` },
    ]).overrideByName('limit', LIMIT);
}

function threads() {
    const words = {
        title: 'Threads',
        about: 'Threads of listenq: fewer than ten, plus one for a moment while it enters a namespace.',
        unit: 'none',
        empty: SILENT,
    };
    return number(words, `max(process_threads{${HOST}})`, []);
}

function uptime() {
    const words = {
        title: 'Uptime',
        about: 'Time since listenq started. Its own counters, such as overflows and time full, start there.',
        unit: 's',
        empty: SILENT,
    };
    return number(words, `time() - max(process_start_time_seconds{${HOST}})`, []);
}

function webConfig() {
    const words = {
        title: 'Web configuration',
        about: 'Whether listenq applied the last change of --web.config.file or of a file it names. After a rejected change it keeps the current configuration: see the log.',
        unit: 'none',
        empty: 'listenq runs without --web.config.file here.',
    };
    const values = named([0, 'rejected', 'red'], [1, 'applied', 'green']);
    return number(words, `min(listenq_web_config_last_reload_successful{${HOST}})`, []).mappings([values]);
}

function version() {
    const words = { title: 'Version', about: 'The version of listenq on this host.', unit: 'none', empty: SILENT };
    return rows(words, ['version', 'revision'], [{ name: '', expr: `max by (version, revision) (listenq_build_info{${HOST}})` }]);
}
