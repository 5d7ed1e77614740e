// Owns the Host dashboard: all listeners and namespaces of one instance, and how well listenq itself does.
import type { Dashboard } from '@grafana/grafana-foundation-sdk/dashboard';

import { link, make, marks, one, ownPage, type Section, several, toListener } from './dashboard.js';
import { bands, colored, type Column, diagnosisColumn, LIMIT, lines, linked, named, number, type Query, rows, sorted } from './panel.js';
import { ageOfSample, HOST, LISTENER, NAMESPACES, orZero, rate, worstDiagnosis } from './query.js';

const SILENT = 'This instance does not report: is it down, or chosen wrongly above?';
const NO_NAMESPACE = 'No namespace with this name reports: is it gone, or chosen wrongly above?';
const OLD_KERNEL = 'This kernel does not have the counter, or no namespace is chosen.';

export function host(): Dashboard {
    return make({
        uid: 'listenq-host',
        title: 'listenq / Host',
        about: 'One instance: all its listeners and namespaces, the counters and settings of its kernel, and how well listenq itself does.',
        variables: [
            one('instance', 'Instance', 'listenq_build_info{job="$job"}'),
            several('netns', 'Namespace', `listenq_netns_info{${HOST}}`),
        ],
        links: [link('Fleet', 'listenq-fleet', []), link('Listener', 'listenq-listener', ['instance']), ownPage()],
        annotations: [
            marks('Alerts', `count by (alertname, netns) (ALERTS{alertname=~"ListenQueue.+", alertstate="firing", ${HOST}})`, '{{alertname}} {{netns}}', 'red'),
            marks('Restarts of listenq', `changes(process_start_time_seconds{${HOST}}[$__interval]) > 0`, 'listenq restarted', 'blue'),
        ],
        sections: [now(), listeners(), namespaces(), kernel(), sampling(), scanning(), health()],
    });
}

function now(): Section {
    return {
        title: 'Now',
        lines: [{ height: 4, panels: [[4, troubled()], [4, overflowing()], [4, sampled()], [4, inaccessible()], [4, omitted()], [4, age()]] }],
    };
}

function troubled() {
    const words = {
        title: 'Listeners in trouble',
        about: 'Listeners of the chosen namespaces with at least one diagnosis that holds now.',
        unit: 'none',
        empty: SILENT,
    };
    const expr = `count(count by (${LISTENER}) (listenq_listener_diagnosis{${NAMESPACES}} == 1))`;
    return number(words, orZero(expr, HOST), [[1, 'red']]);
}

function overflowing() {
    const words = {
        title: 'Overflows per second',
        about: 'Connections turned away in the chosen namespaces because an accept queue was full. In health it is 0.',
        unit: 'cps',
        empty: NO_NAMESPACE,
    };
    return number(words, `sum(${rate('listenq_netns_listen_overflows_total', NAMESPACES)})`, [[0.001, 'red']]);
}

function sampled() {
    const words = {
        title: 'Namespaces sampled',
        about: 'Network namespaces whose listeners are seen.',
        unit: 'none',
        empty: SILENT,
    };
    return number(words, `listenq_namespaces{${HOST}, state="sampled"}`, []);
}

function inaccessible() {
    const words = {
        title: 'Namespaces not seen',
        about: 'Network namespaces that are there but may not be entered: their listeners are missing. listenq needs CAP_SYS_ADMIN and CAP_SYS_PTRACE for them.',
        unit: 'none',
        empty: SILENT,
    };
    return number(words, `listenq_namespaces{${HOST}, state="inaccessible"}`, [[1, 'orange']]);
}

function omitted() {
    const words = {
        title: 'Listeners omitted',
        about: 'Listeners without series because of --listener.max. Their overflows count as unexposed.',
        unit: 'none',
        empty: SILENT,
    };
    return number(words, `listenq_listeners_omitted{${HOST}}`, [[1, 'orange']]);
}

function age() {
    const words = {
        title: 'Age of the data',
        about: 'How old the last good sample of the chosen namespace that is worst off was at the last scrape. From 10 s on its gauges are absent.',
        unit: 's',
        empty: NO_NAMESPACE,
    };
    return number(words, `max(${ageOfSample(NAMESPACES)})`, [[2, 'orange'], [10, 'red']]);
}

function listeners(): Section {
    return {
        title: 'Listeners',
        lines: [
            { height: 12, panels: [[24, allListeners()]] },
            { height: 9, panels: [[8, fullest()], [8, overflowsByListener()], [8, diagnoses()]] },
        ],
    };
}

function allListeners() {
    const words = {
        title: 'All listeners',
        about: 'Every listener of the chosen namespaces as it is now, the fullest first, with its owner. Click an address to see the listener.',
        unit: 'none',
        empty: NO_NAMESPACE,
    };
    const labels = ['netns', 'address', 'port', 'process'];
    const more = ['protocol', 'unit', 'k8s_namespace', 'k8s_pod'];
    const columns: Column[] = [
        { name: '', expr: `max by (${[...labels, ...more].join(', ')}) (listenq_listener_info{${NAMESPACES}})` },
        diagnosisColumn(listenerMax(worstDiagnosis(NAMESPACES))),
        { name: 'fullest', unit: 'percentunit', expr: listenerMax(`listenq_accept_queue_fullest_ratio{${NAMESPACES}}`), properties: colored([[0.8, 'orange'], [1, 'red']]) },
        { name: 'length', expr: listenerMax(`listenq_accept_queue_length{${NAMESPACES}}`) },
        { name: 'peak', expr: listenerMax(`listenq_accept_queue_peak_length{${NAMESPACES}}`) },
        { name: 'limit', expr: listenerMax(`listenq_accept_queue_limit{${NAMESPACES}}`) },
        { name: 'oldest wait', unit: 's', expr: listenerMax(`listenq_accept_queue_oldest_seconds{${NAMESPACES}}`) },
        { name: 'overflows', unit: 'cps', expr: listenerMax(rate('listenq_listener_overflows_total', NAMESPACES)), properties: colored([[0.001, 'red']]) },
        { name: 'sockets', expr: listenerMax(`listenq_listener_sockets{${NAMESPACES}}`) },
    ];
    const url = toListener(['instance'], ['netns', 'protocol', 'address', 'port']);
    return sorted(linked(rows(words, labels, columns, more), 'address', 'Show the listener', url), 'fullest');
}

function listenerMax(series: string): string {
    return `max by (netns, protocol, address, port) (${series})`;
}

function fullest() {
    const words = {
        title: 'Fullest listeners',
        about: 'Length over limit + 1 of the fullest socket, the ten fullest listeners at any time. At 100 % the next connection is turned away.',
        unit: 'percentunit',
        empty: 'No queue held anything at a scrape.',
    };
    return lines(words, [byListener(`topk(10, listenq_accept_queue_fullest_ratio{${NAMESPACES}} > 0)`)], [[0.8, 'orange'], [1, 'red']]);
}

function overflowsByListener() {
    const words = {
        title: 'Overflows by listener',
        about: 'Connections turned away at each listener, and those charged to none or to one that is not exposed. Stacked they are what the kernel counted.',
        unit: 'cps',
        empty: 'Nothing was turned away.',
    };
    return lines(words, [
        byListener(`${rate('listenq_listener_overflows_total', NAMESPACES)} > 0`),
        { name: '{{netns}} unattributed', expr: `${rate('listenq_netns_unattributed_overflows_total', NAMESPACES)} > 0` },
        { name: '{{netns}} unexposed', expr: `${rate('listenq_netns_unexposed_overflows_total', NAMESPACES)} > 0` },
    ]);
}

function diagnoses() {
    const words = {
        title: 'Diagnoses',
        about: 'Which listeners had which trouble when. A band that comes back at the same time each day is a job; one that stays is a lack of capacity or a hang.',
        unit: 'none',
        empty: 'No listener of these namespaces was in trouble.',
    };
    const query = { name: '{{netns}} {{address}} {{port}} {{diagnosis}}', expr: `listenq_listener_diagnosis{${NAMESPACES}}` };
    return bands(words, query, named([0, 'over', 'transparent'], [1, 'holds', 'red']));
}

function byListener(expr: string): Query {
    return { name: '{{netns}} {{protocol}} {{address}} {{port}}', expr };
}

function namespaces(): Section {
    return { title: 'Namespaces', lines: [{ height: 7, panels: [[24, settings()]] }] };
}

function settings() {
    const words = {
        title: 'Namespaces and their settings',
        about: 'Every chosen namespace, whose it is, what caps its queues, and how it is seen. somaxconn binds at the next listen(2); tcp_max_syn_backlog is no cap on the accept queue.',
        unit: 'none',
        empty: NO_NAMESPACE,
    };
    const labels = ['netns', 'container_id', 'k8s_namespace', 'k8s_pod'];
    const columns: Column[] = [
        { name: '', expr: `max by (${labels.join(', ')}) (listenq_netns_info{${NAMESPACES}})` },
        { name: 'listeners', expr: `count by (netns) (listenq_listener_sockets{${NAMESPACES}})` },
        setting('somaxconn'),
        setting('tcp_max_syn_backlog'),
        setting('tcp_abort_on_overflow'),
        setting('tcp_syncookies'),
        setting('tcp_synack_retries'),
        { name: 'age of sample', unit: 's', expr: `max by (netns) (${ageOfSample(NAMESPACES)})` },
        { name: 'age of scan', unit: 's', expr: `time() - max by (netns) (listenq_netns_scan_timestamp_seconds{${NAMESPACES}})` },
    ];
    return rows(words, labels, columns);
}

function setting(name: string): Column {
    return { name, expr: `max by (netns) (listenq_netns_${name}{${NAMESPACES}})` };
}

function kernel(): Section {
    return {
        title: 'Kernel counters',
        lines: [
            { height: 8, panels: [[8, refusals()], [8, connections()], [8, synQueueFull()]] },
            { height: 8, panels: [[8, cookies()], [8, oddities()], [8, lengths()]] },
        ],
    };
}

function refusals() {
    const words = {
        title: 'Overflows and drops',
        about: 'ListenOverflows: turned away because an accept queue was full. ListenDrops: requests that came to nothing for any reason, overflows among them; alone they are no trouble of a queue.',
        unit: 'cps',
        empty: OLD_KERNEL,
    };
    return lines(words, [counter('overflows', 'listen_overflows'), counter('drops', 'listen_drops')]);
}

function connections() {
    const words = {
        title: 'Connections',
        about: 'Connections that came up at listeners (PassiveOpens), and attempts that failed, outgoing ones among them (AttemptFails).',
        unit: 'cps',
        empty: OLD_KERNEL,
    };
    return lines(words, [counter('came up', 'passive_opens'), counter('failed', 'attempt_fails')]);
}

function synQueueFull() {
    const words = {
        title: 'SYN queue full',
        about: 'SYNs that met a full SYN queue: answered by a cookie, or dropped where cookies are off. A flood, or very many clients at once.',
        unit: 'cps',
        empty: OLD_KERNEL,
    };
    return lines(words, [counter('cookie', 'tcp_req_q_full_do_cookies'), counter('dropped', 'tcp_req_q_full_drop')]);
}

function cookies() {
    const words = {
        title: 'SYN cookies',
        about: 'Cookies sent, those that came back valid, and ACKs whose cookie was not. Sent far above received is a flood.',
        unit: 'cps',
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
        about: 'Resets of half-open connections (port scans), bare ACKs that TCP_DEFER_ACCEPT puts aside, Fast Open requests over their limit, and connections lost when a reuseport member closed: only the last is a loss.',
        unit: 'cps',
        empty: OLD_KERNEL,
    };
    return lines(words, [
        counter('resets while half-open', 'embryonic_rsts'),
        counter('deferred ACKs', 'tcp_defer_accept_drop'),
        counter('Fast Open over limit', 'tcp_fast_open_listen_overflow'),
        counter('lost in migration', 'tcp_migrate_req_failure'),
    ]);
}

function lengths() {
    const words = {
        title: 'Connections waiting',
        about: 'Accepted by no process yet, and half-open, all listeners of a namespace together. Lines that climb and stay are trouble.',
        unit: 'none',
        empty: NO_NAMESPACE,
    };
    return lines(words, [
        { name: '{{netns}} waiting', expr: `sum by (netns) (listenq_accept_queue_length{${NAMESPACES}})` },
        { name: '{{netns}} half-open', expr: `sum by (netns) (listenq_syn_queue_length{${NAMESPACES}})` },
    ]);
}

function counter(name: string, word: string): Query {
    return { name: `{{netns}} ${name}`, expr: rate(`listenq_netns_${word}_total`, NAMESPACES) };
}

function sampling(): Section {
    return {
        title: 'listenq: sampling',
        lines: [
            { height: 8, panels: [[8, interval()], [8, missed()], [8, duration()]] },
            { height: 8, panels: [[8, credited()], [8, errors()], [8, features()]] },
        ],
    };
}

function interval() {
    const words = {
        title: 'Sampling interval',
        about: 'Mean gap between samples, achieved and asked for. Achieved above asked: sampling would cost more than --sample.cpu-budget, or the machine is starved.',
        unit: 's',
        empty: SILENT,
    };
    return lines(words, [
        { name: 'achieved', expr: `listenq_sample_interval_seconds{${HOST}}` },
        { name: 'asked for', expr: `listenq_sample_interval_target_seconds{${HOST}}` },
    ]).overrideByName('asked for', LIMIT);
}

function missed() {
    const words = {
        title: 'Samples',
        about: 'Samples taken each second, and those that were due while an earlier one still ran or listenq had no processor. Many missed: bursts go unseen.',
        unit: 'cps',
        empty: SILENT,
    };
    return lines(words, [
        { name: 'taken', expr: rate('listenq_samples_total', HOST) },
        { name: 'missed', expr: rate('listenq_samples_missed_total', HOST) },
    ]);
}

function duration() {
    const words = {
        title: 'Time a sample takes',
        about: 'Median and 99th percentile, on the clock. Its cost follows the number of listeners and namespaces, never that of connections.',
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
        about: 'Share of time that samples stand for, the ten namespaces with the least. Well below 100 %: stalls or suspends, and rates of time full tell of the rest only.',
        unit: 'percentunit',
        empty: NO_NAMESPACE,
    };
    return lines(words, [{ name: '{{netns}}', expr: `bottomk(10, ${rate('listenq_netns_sampled_seconds_total', NAMESPACES)})` }]);
}

function errors() {
    const words = {
        title: 'Readings that failed',
        about: 'By source. Each leaves its own numbers as they were; a source that fails all the time makes them stale. In health it is 0.',
        unit: 'cps',
        empty: SILENT,
    };
    return lines(words, [{ name: '{{source}}', expr: rate('listenq_sample_errors_total', HOST) }], [[0.1, 'red']]);
}

function features() {
    const words = {
        title: 'Features',
        about: 'What works here, and what lacks a privilege or a kernel module. One that was not tried is not shown.',
        unit: 'none',
        empty: SILENT,
    };
    const states = named([0, 'missing', 'orange'], [1, 'works', 'green']);
    return bands(words, { name: '{{feature}}', expr: `listenq_feature_available{${HOST}}` }, states);
}

function scanning(): Section {
    return { title: 'listenq: connection scans', lines: [{ height: 8, panels: [[8, scanInterval()], [8, scanDuration()], [8, scanRows()]] }] };
}

function scanInterval() {
    const words = {
        title: 'Scan interval',
        about: 'Time between the last two connection scans of each namespace. Idle ones are scanned seldom; a namespace with a queue should be near --scan.interval.',
        unit: 's',
        empty: 'No namespace was scanned twice: scans may be missing a privilege (see the features).',
    };
    return lines(words, [{ name: '{{netns}}', expr: `listenq_netns_scan_interval_seconds{${NAMESPACES}}` }]);
}

function scanDuration() {
    const words = {
        title: 'Time a scan takes',
        about: 'Median and 99th percentile of one namespace, on the clock. Its cost follows the connections of the whole machine; scans never take more than 1 % of a core.',
        unit: 's',
        empty: 'There was no scan: the machine may lack the feature (see above).',
    };
    return lines(words, quantiles('listenq_scan_duration_seconds'));
}

function scanRows() {
    const words = {
        title: 'Sockets listed by scans',
        about: 'Half-open and waiting connections that the kernel listed, each second; not those it had to walk.',
        unit: 'cps',
        empty: SILENT,
    };
    return lines(words, [{ name: 'sockets', expr: rate('listenq_scan_rows_total', HOST) }]);
}

function health(): Section {
    return {
        title: 'listenq: process',
        lines: [
            { height: 8, panels: [[8, cpu()], [8, memory()], [8, descriptors()]] },
            { height: 4, panels: [[6, threads()], [6, uptime()], [6, webConfig()], [6, version()]] },
        ],
    };
}

function cpu() {
    const words = {
        title: 'CPU',
        about: 'Share of one core. Sampling stays within --sample.cpu-budget (2 %), scans within 1 %.',
        unit: 'percentunit',
        empty: SILENT,
    };
    return lines(words, [{ name: 'used', expr: rate('process_cpu_seconds_total', HOST) }]);
}

function memory() {
    const words = {
        title: 'Memory',
        about: 'Resident memory follows the number of listeners. Growth without more listeners is a leak. Virtual memory is address space, not use.',
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
        about: 'Open ones against the limit of the process: a few for each namespace. At the limit, namespaces cannot be entered any more.',
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
        about: 'Threads of listenq: a handful, and one for a moment while it enters a namespace.',
        unit: 'none',
        empty: SILENT,
    };
    return number(words, `process_threads{${HOST}}`, []);
}

function uptime() {
    const words = {
        title: 'Up for',
        about: 'Time since listenq started. Overflows, time full and the other counters of listenq count from there.',
        unit: 's',
        empty: SILENT,
    };
    return number(words, `time() - process_start_time_seconds{${HOST}}`, []);
}

function webConfig() {
    const words = {
        title: 'Web configuration',
        about: 'Whether the last change of --web.config.file or of a file it names was taken over. When refused, the one before it stays in force: see the log.',
        unit: 'none',
        empty: 'listenq runs here without --web.config.file.',
    };
    const values = named([0, 'refused', 'red'], [1, 'taken over', 'green']);
    return number(words, `listenq_web_config_last_reload_successful{${HOST}}`, []).mappings([values]);
}

function version() {
    const words = { title: 'Version', about: 'Which listenq runs here.', unit: 'none', empty: SILENT };
    return rows(words, ['version', 'revision'], [{ name: '', expr: `max by (version, revision) (listenq_build_info{${HOST}})` }]);
}
