// The dashboard Listener: everything about one listener.
import type { Dashboard } from '@grafana/grafana-foundation-sdk/dashboard';

import { instance, link, make, marks, node, nodeLink, one, ownPage, podDashboard, type Section, toPod } from './dashboard.js';
import { bands, COUNT, LIMIT, linked, lines, named, number, PER_SECOND, rankMapping, rows } from './panel.js';
import { HOST, NETNS, ONE, perSampledSecond, rate, RESTARTS, shareRefused, worstDiagnosis } from './query.js';

const UNKNOWN = 'This listener has no series at this time: is the selection above right? The series of a closed listener end after five minutes.';
const UNSCANNED = 'Unknown: the last scan of the namespace is missing or too old (busy namespaces are scanned first).';
const NOT_LOOKED_AT = 'listenq reads this of the owner only while the listener has a diagnosis.';

/** Unix listeners are sampled less often, so a window may contain one second too much. */
const TIME_FULL = `clamp_max(${perSampledSecond('listenq_accept_queue_full_seconds_total', ONE, NETNS)}, 1)`;

export function listener(): Dashboard {
    return make({
        uid: 'listenq-listener',
        title: 'listenq / Listener',
        about: 'One listener: its diagnoses and their causes, its queue and limit, how long connections wait, refusals, and its owner.',
        variables: [
            instance(),
            one('netns', 'Namespace', `listenq_netns_info{${HOST}}`),
            one('protocol', 'Protocol', `listenq_listener_info{${NETNS}}`),
            one('address', 'Address', `listenq_listener_info{${NETNS}, protocol="$protocol"}`),
            one('port', 'Port', `listenq_listener_info{${NETNS}, protocol="$protocol", address="$address"}`),
            podDashboard(),
            ...node(),
        ],
        links: [
            link('Fleet', 'listenq-fleet', ['cluster']),
            link('Host', 'listenq-host', ['cluster', 'instance', 'netns']),
            nodeLink(),
            ownPage(),
        ],
        annotations: [
            marks('Alerts', `ALERTS{alertname=~"ListenQueue.+", alertstate="firing", ${ONE}}`, '{{alertname}}', 'red'),
            marks('Diagnoses', `listenq_listener_diagnosis{${ONE}} == 1`, '{{diagnosis}}', 'orange'),
            marks('Restarts of the server', RESTARTS.server, 'the server opened its socket', 'purple'),
            marks('Restarts of listenq', RESTARTS.listenq, 'listenq restarted', 'blue'),
        ],
        sections: [now(), queue(), waiting(), refused(), synQueue(), caps(), slow()],
    });
}

function now(): Section {
    return {
        title: 'Now',
        lines: [
            { height: 4, panels: [[5, diagnosis()], [4, fullest()], [4, oldestNow()], [4, overflowed()], [4, fullNow()], [3, sockets()]] },
            { height: 4, panels: [[24, owner()]] },
            { height: 4, panels: [[12, diagnoses()], [12, causes()]] },
        ],
    };
}

function diagnosis() {
    const words = {
        title: 'Diagnosis',
        about: 'The first present diagnosis in order of precedence. The panel Diagnoses shows all diagnoses over time.',
        unit: 'none',
        empty: UNKNOWN,
    };
    const expr = `max(${worstDiagnosis(ONE)} or 0 * listenq_listener_info{${ONE}})`;
    return number(words, expr, []).mappings([rankMapping()]);
}

function fullest() {
    const words = {
        title: 'Fullness',
        about: 'Length / (limit + 1) of the fullest socket of the listener. At 100 % the next connection is turned away.',
        unit: 'percentunit',
        empty: UNKNOWN,
    };
    return number(words, `max(listenq_accept_queue_fullest_ratio{${ONE}})`, [[0.8, 'orange'], [1, 'red']]);
}

function oldestNow() {
    const words = {
        title: 'Oldest wait',
        about: 'How long the first connection in the queue has waited, from the last connection scan. Accepted connections are not included.',
        unit: 's',
        empty: UNSCANNED,
    };
    return number(words, `max(listenq_accept_queue_oldest_seconds{${ONE}})`, [[1, 'orange'], [5, 'red']]);
}

function overflowed() {
    const words = {
        title: 'Refusals in this range',
        about: 'Refusals at this listener within the selected time range because its accept queue was full. The healthy value is 0.',
        unit: COUNT,
        empty: 'The kernel has no such counter for Unix listeners. A TCP listener without a value is unknown.',
    };
    return number(words, `round(sum(increase(listenq_listener_overflows_total{${ONE}}[$__range])))`, [[0.5, 'red']]);
}

function fullNow() {
    const words = {
        title: 'Time full',
        about: 'Share of sampled time during which a socket of the listener was full, over the rate interval. From 20 % on the server accepts too slowly.',
        unit: 'percentunit',
        empty: UNKNOWN,
    };
    return number(words, `max(${TIME_FULL})`, [[0.001, 'orange'], [0.2, 'red']]);
}

function sockets() {
    const words = {
        title: 'Sockets',
        about: 'Sockets behind the listener: several with SO_REUSEPORT; 0 after it closed.',
        unit: 'none',
        empty: UNKNOWN,
    };
    return number(words, `max(listenq_listener_sockets{${ONE}})`, []);
}

function owner() {
    const words = {
        title: 'Owner',
        about: 'The owner of the listener, as far as listenq may see. An empty cell is unknown or does not apply.',
        unit: 'none',
        empty: UNKNOWN,
    };
    const labels = ['process', 'unit', 'container_id', 'k8s_namespace', 'k8s_pod', 'k8s_container'];
    const expr = `max by (${labels.join(', ')}) (listenq_listener_info{${ONE}})`;
    return linked(rows(words, labels, [{ name: '', expr }]), 'k8s_pod', 'Show the pod', toPod());
}

function diagnoses() {
    const words = {
        title: 'Diagnoses',
        about: 'When each diagnosis held. Several can hold at once. Each holds for at least 10 s and is shown as over for five minutes after its end.',
        unit: 'none',
        empty: 'No diagnosis within this time, provided that the panel Owner shows a row.',
    };
    const states = named([0, 'over', 'transparent'], [1, 'holds', 'red']);
    return bands(words, { name: '{{diagnosis}}', expr: `max by (diagnosis) (listenq_listener_diagnosis{${ONE}})` }, states);
}

function causes() {
    const words = {
        title: 'Causes',
        about: 'When it was certain why the owner does not accept. Causes are looked for only while the listener has a diagnosis, and are shown as over for five minutes after their end.',
        unit: 'none',
        empty: 'No cause was certain within this time, or the listener had no diagnosis.',
    };
    const states = named([0, 'over', 'transparent'], [1, 'holds', 'orange']);
    return bands(words, { name: '{{cause}}', expr: `max by (cause) (listenq_listener_cause{${ONE}})` }, states);
}

function queue(): Section {
    return {
        title: 'Queue and its owner',
        lines: [
            { height: 10, panels: [[16, length()], [8, full()]] },
            { height: 7, panels: [[8, cpu()], [8, descriptors()], [8, open()]] },
        ],
    };
}

function length() {
    const words = {
        title: 'Length against limit',
        about: 'Length at the scrape, largest length within the peak window, and mean over all samples. A peak at the limit with a low mean is a burst; a mean at the limit is a server that is too slow.',
        unit: 'none',
        empty: UNKNOWN,
    };
    const mean = perSampledSecond('listenq_accept_queue_connection_seconds_total', ONE, NETNS);
    return lines(words, [
        { name: 'length', expr: `listenq_accept_queue_length{${ONE}}` },
        { name: 'peak', expr: `listenq_accept_queue_peak_length{${ONE}}` },
        { name: 'mean', expr: mean },
        { name: 'limit', expr: `listenq_accept_queue_limit{${ONE}}` },
    ]).overrideByName('limit', LIMIT);
}

function full() {
    const words = {
        title: 'Time full and fullness',
        about: 'Share of sampled time with a full socket, and fullness of the fullest socket at the scrape. Judge by the time full: the other is one instant.',
        unit: 'percentunit',
        empty: UNKNOWN,
    };
    const queries = [
        { name: 'time full', expr: TIME_FULL },
        { name: 'fullest socket', expr: `listenq_accept_queue_fullest_ratio{${ONE}}` },
    ];
    return lines(words, queries, [[0.2, 'red']]).axisSoftMax(1);
}

function waiting(): Section {
    return {
        title: 'Waiting',
        lines: [
            { height: 8, panels: [[12, oldest()], [12, abandoned()]] },
        ],
    };
}

function slow(): Section {
    return {
        title: 'Drain rate, and clients that left',
        collapsed: true,
        lines: [{ height: 8, panels: [[8, useful()], [8, left()], [8, shareLeft()]] }],
    };
}

function oldest() {
    const words = {
        title: 'Wait and patience',
        about: 'How long the first connection in the queue had waited at each scan, and the median time after which clients left the queue. A wait that climbs steadily means that the server accepts nothing; a wait above the patience means that most clients leave.',
        unit: 's',
        empty: UNSCANNED,
    };
    return lines(words, [
        { name: 'oldest wait', expr: `listenq_accept_queue_oldest_seconds{${ONE}}` },
        { name: 'client patience', expr: `listenq_accept_queue_client_patience_seconds{${ONE}}` },
    ]).overrideByName('client patience', LIMIT);
}

function abandoned() {
    const words = {
        title: 'Abandoned',
        about: 'Connections in the queue whose client has closed, half-closed or reset, and all connections in the queue. When most are abandoned, the server works for clients that have left, and a longer queue makes it worse.',
        unit: 'none',
        empty: UNSCANNED,
    };
    return lines(words, [
        { name: 'abandoned', expr: `listenq_accept_queue_abandoned{${ONE}}` },
        { name: 'waiting', expr: `listenq_accept_queue_length{${ONE}}` },
    ]);
}

function useful() {
    const words = {
        title: 'Drain rate and useful limit',
        about: 'Connections accepted per second while the queue was full throughout, and the largest useful limit (drain rate times the measured patience of the clients, or times --client-patience). A larger limit only holds clients that leave.',
        unit: 'none',
        empty: 'The queue was not full throughout at any scan, so the drain rate is unknown and not needed.',
    };
    return lines(words, [
        { name: 'drain rate', expr: `listenq_accept_queue_drain_rate{${ONE}}` },
        { name: 'useful limit', expr: `listenq_accept_queue_useful_limit{${ONE}}` },
        { name: 'limit', expr: `listenq_accept_queue_limit{${ONE}} and listenq_accept_queue_useful_limit{${ONE}}` },
    ])
        .overrideByName('drain rate', [{ id: 'unit', value: PER_SECOND }, { id: 'custom.axisPlacement', value: 'right' }])
        .overrideByName('limit', LIMIT);
}

function left() {
    const words = {
        title: 'Clients that left',
        about: 'Clients per second that left the queue before they were accepted: closed later than 100 ms, or reset. Clients that were refused, or that came and left between two scans, are not included. The healthy value is 0.',
        unit: PER_SECOND,
        empty: 'Scans have not seen a client wait in this queue.',
    };
    return lines(words, [{ name: 'left', expr: rate('listenq_listener_abandoned_total', ONE) }]);
}

function shareLeft() {
    const words = {
        title: 'Share of clients that left',
        about: 'Of the clients that scans saw in the queue within the last minute, the share that left before they were accepted. From 50 % on the server works mostly for clients that have left.',
        unit: 'percentunit',
        empty: 'Scans saw fewer than ten clients in the queue within a minute.',
    };
    return lines(words, [{ name: 'left', expr: `listenq_accept_queue_abandoned_ratio{${ONE}}` }], [[0.5, 'red']]);
}

function open() {
    const words = {
        title: 'Open connections',
        about: 'Connections that the server has accepted and not closed, from the last scan. A flat line while the queue is full points to a connection limit of the server.',
        unit: 'none',
        empty: 'Unknown: scans count open connections only while connections wait at the port.',
    };
    return lines(words, [{ name: 'open', expr: `listenq_listener_open_connections{${ONE}}` }]);
}

function refused(): Section {
    return { title: 'Refused', lines: [{ height: 8, panels: [[8, overflows()], [8, namespace()], [8, share()]] }] };
}

function share() {
    const words = {
        title: 'Attempts refused',
        about: 'Refusals / (refusals + connections established), of the whole namespace: the kernel counts established connections for no single listener. A client that tries again is refused again.',
        unit: 'percentunit',
        empty: UNKNOWN,
    };
    return lines(words, [{ name: 'refused', expr: shareRefused(NETNS, 'by (cluster) ') }]);
}

function overflows() {
    const words = {
        title: 'Refusals and drops',
        about: 'Refusals because the queue was full (overflows): they are bad. Drops are segments discarded for any reason, including port scans and repeated SYNs: without overflows they are harmless.',
        unit: PER_SECOND,
        empty: 'The kernel has no such counters for Unix listeners. A TCP listener without values is unknown.',
    };
    return lines(words, [
        { name: 'refusals', expr: rate('listenq_listener_overflows_total', ONE) },
        { name: 'drops', expr: rate('listenq_listener_drops_total', ONE) },
    ]);
}

function namespace() {
    const words = {
        title: 'Refusals in the whole namespace',
        about: 'The counter of the kernel (ListenOverflows), and the part that could not be attributed to a listener. If it exceeds the refusals of this listener, other listeners overflow too.',
        unit: PER_SECOND,
        empty: UNKNOWN,
    };
    return lines(words, [
        { name: 'all listeners', expr: rate('listenq_netns_listen_overflows_total', NETNS) },
        { name: 'unattributed', expr: rate('listenq_netns_unattributed_overflows_total', NETNS) },
    ]);
}

function descriptors() {
    const words = {
        title: 'File descriptors of the owner',
        about: 'Open file descriptors and the limit, for the process closest to its limit among those that hold the socket. At the limit it cannot accept.',
        unit: 'none',
        empty: NOT_LOOKED_AT,
    };
    return lines(words, [
        { name: 'open', expr: `listenq_owner_open_fds{${ONE}}` },
        { name: 'limit', expr: `listenq_owner_max_fds{${ONE}}` },
    ]).overrideByName('limit', LIMIT);
}

function cpu() {
    const words = {
        title: 'CPU that the owner lacks',
        about: 'Throttled: time without CPU because the quota of a cgroup ran out, summed over processors. Waiting: time that threads could run and did not, throttling included. 100 % is one processor or thread all the time.',
        unit: 'percentunit',
        empty: NOT_LOOKED_AT,
    };
    return lines(words, [
        { name: 'throttled', expr: rate('listenq_owner_cpu_throttled_seconds_total', ONE) },
        { name: 'waiting', expr: rate('listenq_owner_cpu_wait_seconds_total', ONE) },
    ]);
}

function synQueue(): Section {
    return { title: 'SYN queue', lines: [{ height: 8, panels: [[12, halfOpen()], [12, cookies()]] }] };
}

function halfOpen() {
    const words = {
        title: 'Half-open connections',
        about: 'Handshakes that are not complete, from the last scan. The limit of the accept queue is also their cap. At the cap while the accept queue is not full means a SYN flood, or very many clients at once.',
        unit: 'none',
        empty: UNSCANNED,
    };
    return lines(words, [
        { name: 'half-open', expr: `listenq_syn_queue_length{${ONE}}` },
        { name: 'limit', expr: `listenq_accept_queue_limit{${ONE}}` },
    ]).overrideByName('limit', LIMIT);
}

function cookies() {
    const words = {
        title: 'SYN cookies of the namespace',
        about: 'SYN cookies sent because a SYN queue was full, and cookies returned. Sent far above received means a flood from forged addresses. Similar rates mean real clients and a short queue.',
        unit: PER_SECOND,
        empty: UNKNOWN,
    };
    return lines(words, [
        { name: 'sent', expr: rate('listenq_netns_syncookies_sent_total', NETNS) },
        { name: 'received', expr: rate('listenq_netns_syncookies_recv_total', NETNS) },
    ]);
}

function caps(): Section {
    return { title: 'Caps', lines: [{ height: 4, panels: [[4, limit()], [4, somaxconn()], [4, binding()], [4, synBacklog()], [4, abort()], [4, cookiesOn()]] }] };
}

function limit() {
    const words = {
        title: 'Limit of the queue',
        about: 'min(listen backlog, somaxconn) at the time of listen(2), summed over the sockets of the listener.',
        unit: 'none',
        empty: UNKNOWN,
    };
    return number(words, `max(listenq_accept_queue_limit{${ONE}})`, []);
}

function somaxconn() {
    const words = {
        title: 'somaxconn',
        about: 'net.core.somaxconn of the namespace: the cap on the backlog of listen(2). It applies at the next listen call: restart the server after a change.',
        unit: 'none',
        empty: UNKNOWN,
    };
    return number(words, `max(listenq_netns_somaxconn{${NETNS}})`, []);
}

function binding() {
    const words = {
        title: 'Which cap binds',
        about: 'Which cap determines the limit of each socket. If it is somaxconn, raise that first and then the backlog of the server. Otherwise the server itself asked for the limit.',
        unit: 'none',
        empty: UNKNOWN,
    };
    const each = `listenq_accept_queue_limit{${ONE}} / (listenq_listener_sockets{${ONE}} > 0)`;
    const expr = `${each} == bool on (cluster, instance, netns) group_left () listenq_netns_somaxconn{${NETNS}}`;
    return number(words, `max(${expr})`, []).mappings([named([0, "server's backlog", 'text'], [1, 'somaxconn', 'text'])]);
}

function synBacklog() {
    const words = {
        title: 'tcp_max_syn_backlog',
        about: 'net.ipv4.tcp_max_syn_backlog: caps half-open connections where SYN cookies are off. It does not cap the accept queue, and raising it does not prevent overflows.',
        unit: 'none',
        empty: UNKNOWN,
    };
    return number(words, `max(listenq_netns_tcp_max_syn_backlog{${NETNS}})`, []);
}

function abort() {
    const words = {
        title: 'tcp_abort_on_overflow',
        about: 'What a client receives when the queue is full: no answer, so that it retries; or a reset, so that it fails at once.',
        unit: 'none',
        empty: UNKNOWN,
    };
    const values = named([0, 'no answer', 'text'], [1, 'reset', 'orange']);
    return number(words, `max(listenq_netns_tcp_abort_on_overflow{${NETNS}})`, []).mappings([values]);
}

function cookiesOn() {
    const words = {
        title: 'tcp_syncookies',
        about: 'Whether the kernel answers with SYN cookies when a SYN queue is full. Without them real clients cannot connect during a SYN flood.',
        unit: 'none',
        empty: UNKNOWN,
    };
    const values = named([0, 'never', 'orange'], [1, 'when full', 'green'], [2, 'always', 'text']);
    return number(words, `max(listenq_netns_tcp_syncookies{${NETNS}})`, []).mappings([values]);
}
