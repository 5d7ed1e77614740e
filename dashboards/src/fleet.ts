// The dashboard Fleet: which listeners of all instances are in trouble now.
import type { Dashboard } from '@grafana/grafana-foundation-sdk/dashboard';

import { link, make, marks, podDashboard, type Section, several, to, toListener, toPod } from './dashboard.js';
import { causeColumn, colored, type Column, COUNT, diagnosisColumn, inDiagnosisColors, lines, linked, number, PER_SECOND, rows, sorted, type Words } from './panel.js';
import { ageOfSample, CLUSTERS, FLEET, INSTANCE, LISTENER, orZero, rate, RECORDED, shareRefused, topTen, withLastOwner, withOwner, worstDiagnosis } from './query.js';

const LABELS = ['cluster', 'service', 'instance'];
/** Labels to the right of the numbers, which must be visible without scrolling. */
const MORE = ['address', 'port', 'netns', 'protocol', 'process', 'unit', 'k8s_namespace', 'k8s_pod'];
/** Labels of narrow tables, which show the number next to the service. */
const NARROW = ['cluster', 'service'];
const MORE_NARROW = ['instance', ...MORE];
const NOT_SCRAPED = 'No instance reports: is listenq scraped, and is the selection above right?';
const AS_RECORDED = 'Valid only if "Listeners watched" shows a number, since rules record both.';
const ALL_OWNERS = 'Not narrowed by service and unit.';
/** Refusals per second, over the last two minutes. */
const REFUSALS = `${RECORDED.overflows}{${FLEET}} / 120`;
const UNRECORDED = 'The recording rules have no result: are recording.yml and alerts.yml loaded, and is the job named listenq?';
const TROUBLE = `max by (${LISTENER}) (listenq_listener_diagnosis{${FLEET}} == 1)`;
const FIRING = `alertname=~"ListenQueue.+", alertstate="firing", ${FLEET}`;
/** The legend of an instance. Where there is no cluster, Grafana trims the space at the end. */
const OF_INSTANCE = '{{instance}} {{cluster}}';
const RUNBOOK = 'https://github.com/listenq/listenq/blob/main/deploy/runbooks/${__data.fields.alertname}.md';

export function fleet(): Dashboard {
    return make({
        uid: 'listenq-fleet',
        title: 'listenq / Fleet',
        about: 'Which listeners of all instances are in trouble now: refused connections, full queues, long waits.',
        variables: [
            several('instance', 'Instance', `listenq_build_info{${CLUSTERS}}`),
            several('service', 'Service', `${RECORDED.incident}{${FLEET}}`),
            several('unit', 'Unit', `${RECORDED.incident}{${FLEET}, service=~"$service"}`),
            podDashboard(),
        ],
        links: [link('Host', 'listenq-host', ['cluster']), link('Listener', 'listenq-listener', ['cluster'])],
        annotations: [
            marks('Alerts', `count by (alertname, severity) (ALERTS{${FIRING}})`, '{{alertname}}', 'red'),
            marks('Restarts of listenq', `count(changes(process_start_time_seconds{${FLEET}}[$__rate_interval]) > 0)`, 'listenq restarted', 'blue'),
        ],
        sections: [now(), inRange(), overTime(), longest(), itself()],
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
                    [3, firing()],
                    [3, listeners()],
                    [3, down()],
                    [3, unseen()],
                ],
            },
            { height: 8, panels: [[24, trouble()]] },
        ],
    };
}

function troubled() {
    const words = {
        title: 'Listeners in trouble',
        about: 'Listeners with at least one diagnosis now. The table below lists them. The healthy value is 0.',
        unit: 'none',
        empty: NOT_SCRAPED,
    };
    return number(words, orZero(`count(${withOwner(TROUBLE)})`, FLEET), [[1, 'red']]);
}

function refused() {
    const words = {
        title: 'Refusals',
        about: `Refusals per second because an accept queue was full, counted by the kernels of all instances (ListenOverflows). A client that tries again is refused again. The healthy value is 0. ${ALL_OWNERS}`,
        unit: PER_SECOND,
        empty: NOT_SCRAPED,
    };
    return number(words, `sum(${rate('listenq_netns_listen_overflows_total', FLEET)})`, [[0.001, 'red']]);
}

function share() {
    const words = {
        title: 'Attempts refused',
        about: `Refusals / (refusals + connections established), of all instances. The healthy value is 0. ${ALL_OWNERS}`,
        unit: 'percentunit',
        empty: NOT_SCRAPED,
    };
    return number(words, shareRefused(FLEET, ''), [[0.00001, 'orange'], [0.01, 'red']]);
}

function waiting() {
    const words = {
        title: 'Connections waiting',
        about: `Connections in the accept queues of all listeners, recorded once a minute. A small number is normal; a large number that stays is not. ${ALL_OWNERS}`,
        unit: 'none',
        empty: UNRECORDED,
    };
    return number(words, `sum(${RECORDED.waiting}{${FLEET}})`, []);
}

function firing() {
    const words = {
        title: 'Alerts firing',
        about: 'Alerts of listenq that fire now. The table below lists them. The healthy value is 0.',
        unit: 'none',
        empty: NOT_SCRAPED,
    };
    return number(words, orZero(`count(ALERTS{${FIRING}})`, FLEET), [[1, 'red']]);
}

function listeners() {
    const words = {
        title: 'Listeners watched',
        about: 'Listeners with series, summed over all instances. A sudden drop means that listenq no longer sees some instances or namespaces.',
        unit: 'none',
        empty: UNRECORDED,
    };
    return number(words, `sum(${RECORDED.listeners}{${FLEET}})`, []);
}

function down() {
    const words = {
        title: 'Instances down',
        about: 'Instances that Prometheus could not scrape at its last attempt. The panels below do not include them.',
        unit: 'none',
        empty: NOT_SCRAPED,
    };
    return number(words, `sum(1 - up{${FLEET}})`, [[1, 'red']]);
}

function unseen() {
    const words = {
        title: 'Namespaces not seen',
        about: 'Network namespaces that exist but may not be entered. Their listeners are missing here. listenq needs CAP_SYS_ADMIN and CAP_SYS_PTRACE for them.',
        unit: 'none',
        empty: NOT_SCRAPED,
    };
    return number(words, `sum(listenq_namespaces{${FLEET}, state="inaccessible"})`, [[1, 'orange']]);
}

function trouble() {
    const words = {
        title: 'Listeners in trouble now',
        about: 'Every listener with a diagnosis now. The first diagnosis and the first cause in order of precedence are shown. Rules record owner, cause and refusals, and the other numbers once a minute. Click an address to see the listener, an instance to see the host, a pod to see the pod.',
        unit: 'none',
        empty: 'No listener is in trouble, provided that "Instances down" shows 0.',
    };
    const columns: Column[] = [
        diagnosisColumn(withOwner(worstDiagnosis(FLEET))),
        causeColumn(troubledMax(`${RECORDED.incident}{${FLEET}}`)),
        { name: 'refusals', unit: PER_SECOND, expr: troubledMax(REFUSALS), properties: colored([[0.001, 'red']]) },
        { name: 'oldest wait', unit: 's', expr: troubledMax(`${RECORDED.oldest}{${FLEET}}`) },
        { name: 'length', expr: troubledMax(`${RECORDED.length}{${FLEET}}`) },
        { name: 'limit', expr: troubledMax(`${RECORDED.limit}{${FLEET}}`) },
    ];
    return sorted(withLinks(rows(words, LABELS, columns, MORE)), 'refusals');
}

/** The highest value of each listener that the first column lists. */
function troubledMax(series: string): string {
    return `max by (${LISTENER}) (${series}) and on (${LISTENER}) (${withOwner(TROUBLE)})`;
}

function inRange(): Section {
    return { title: 'Alerts now, and refusals in the time range', lines: [{ height: 8, panels: [[12, alerts()], [12, mostInRange()]] }] };
}

function alerts() {
    const words = {
        title: 'Alerts that fire',
        about: 'The alerts of listenq that fire now, and for how long they have been pending or firing. Click an alert to read its runbook, an address to see the listener.',
        unit: 'none',
        empty: 'No alert of listenq fires.',
    };
    const labels = ['alertname', 'cluster', 'service'];
    const more = ['instance', 'severity', 'address', 'port', 'netns', 'protocol'];
    const by = [...labels, ...more].join(', ');
    const since = `time() - max by (${by}) (ALERTS_FOR_STATE{alertname=~"ListenQueue.+", ${FLEET}})`;
    const expr = `${since} and on (${by}) ALERTS{${FIRING}, service=~"$service"} or on (${by}) 0 * max by (${by}) (ALERTS{${FIRING}, service=~"$service"})`;
    const table = sorted(rows(words, labels, [{ name: 'for', unit: 's', expr }], more), 'for');
    linked(table, 'alertname', 'Read the runbook', RUNBOOK);
    return withLinks(table);
}

function mostInRange() {
    const words = {
        title: 'Most refusals in this time range',
        about: 'Listeners with the most refusals within the selected time range: who overflowed last night? Summed from what a rule records about two minutes at a time, so a range of a few minutes is not exact.',
        unit: 'none',
        empty: `No queue overflowed within this time. ${AS_RECORDED}`,
    };
    // Each value covers two minutes, and the subquery reads a value every 30 s.
    const sum = `round(sum_over_time(${RECORDED.overflows}{${FLEET}}[$__range:30s]) / 4)`;
    const expr = withLastOwner(topTen(`${sum} > 0`));
    return narrow(words, { name: 'refusals', unit: COUNT, expr });
}

function longest(): Section {
    return {
        title: 'Longest full, longest wait, most abandoned',
        collapsed: true,
        lines: [{ height: 9, panels: [[12, topRefusals()], [12, topFull()]] }, { height: 9, panels: [[12, topWait()], [12, topAbandoned()]] }],
    };
}

function topRefusals() {
    const words = {
        title: 'Most refusals now',
        about: 'Listeners with the most refusals within the last two minutes. While several listeners of one namespace overflow at once, the split between them is an estimate.',
        unit: PER_SECOND,
        empty: `No queue overflows. ${AS_RECORDED}`,
    };
    return ranking(words, 'refusals', topTen(REFUSALS));
}

function topFull() {
    const words = {
        title: 'Longest full',
        about: 'Share of the last two minutes during which a socket of the listener was full. From 20 % on the server accepts too slowly, and a longer queue only makes clients wait longer.',
        unit: 'percentunit',
        empty: `No queue was full. ${AS_RECORDED}`,
    };
    return ranking(words, 'time full', topTen(`clamp_max(${RECORDED.full}{${FLEET}}, 1)`));
}

function topWait() {
    const words = {
        title: 'Longest wait',
        about: 'How long the first connection in the queue has waited, recorded by a rule. Users notice waits of seconds.',
        unit: 's',
        empty: `No connection waits. ${AS_RECORDED}`,
    };
    return ranking(words, 'oldest wait', topTen(`${RECORDED.oldest}{${FLEET}}`));
}

function topAbandoned() {
    const words = {
        title: 'Most abandoned',
        about: 'Connections in the queue whose client has closed or reset, recorded once a minute. The server will work for clients that have left: the queue is longer than clients wait.',
        unit: 'none',
        empty: `No waiting client has left. ${AS_RECORDED}`,
    };
    return ranking(words, 'abandoned', topTen(`${RECORDED.abandoned}{${FLEET}}`));
}

function ranking(words: Words, name: string, expr: string) {
    return narrow(words, { name, expr: withOwner(expr) });
}

function narrow(words: Words, column: Column) {
    return sorted(withLinks(rows(words, NARROW, [column], MORE_NARROW)), column.name);
}

function withLinks(table: ReturnType<typeof rows>) {
    const host = to('listenq-host', [], ['cluster', 'instance']);
    const listener = toListener([], ['cluster', 'instance', 'netns', 'protocol', 'address', 'port']);
    linked(table, 'instance', 'Show the host', `${host}&\${__url_time_range}`);
    linked(table, 'k8s_pod', 'Show the pod', toPod());
    return linked(table, 'address', 'Show the listener', listener);
}

function overTime(): Section {
    return { title: 'Over time', lines: [{ height: 9, panels: [[8, refusalsOverTime()], [8, shareOverTime()], [8, diagnosesOverTime()]] }] };
}

function diagnosesOverTime() {
    const words = {
        title: 'Listeners in trouble by diagnosis',
        about: 'Number of listeners with each diagnosis. A listener with two diagnoses counts twice.',
        unit: 'none',
        empty: 'No listener was in trouble.',
    };
    const query = { name: '{{diagnosis}}', expr: `sum by (diagnosis) (${withOwner(`max by (${LISTENER}, diagnosis) (listenq_listener_diagnosis{${FLEET}})`)})` };
    return inDiagnosisColors(lines(words, [query]).decimals(0));
}

function refusalsOverTime() {
    const words = {
        title: 'Refusals by instance',
        about: 'Refusals per second, for the ten instances with the most in the time shown. A steady rate means too little capacity; spikes mean bursts against short queues.',
        unit: PER_SECOND,
        empty: NOT_SCRAPED,
    };
    const sum = (range: string) => `sum by (${INSTANCE}) (rate(listenq_netns_listen_overflows_total{${FLEET}}[${range}))`;
    const expr = `${sum('$__rate_interval]')} and topk(10, ${sum('$__range] @ end()')})`;
    return lines(words, [{ name: OF_INSTANCE, expr }]);
}

function shareOverTime() {
    const words = {
        title: 'Attempts refused by instance',
        about: 'Refusals / (refusals + connections established), for the ten instances with the highest share at each time.',
        unit: 'percentunit',
        empty: NOT_SCRAPED,
    };
    const expr = `topk(10, ${shareRefused(FLEET, `by (${INSTANCE}) `)})`;
    return lines(words, [{ name: OF_INSTANCE, expr }]);
}

function itself(): Section {
    return { title: 'listenq itself', collapsed: true, lines: [{ height: 8, panels: [[12, stale()], [6, lost()], [6, versions()]] }] };
}

function stale() {
    const words = {
        title: 'Oldest sample',
        about: 'Age at the scrape of the last good sample, for the namespace with the oldest one, on the ten worst instances. Far below 1 s is normal; above 10 s the gauges of the namespace are absent.',
        unit: 's',
        empty: NOT_SCRAPED,
    };
    const expr = `topk(10, max by (${INSTANCE}) (${ageOfSample(FLEET)}))`;
    return lines(words, [{ name: OF_INSTANCE, expr }], [[10, 'red']]);
}

function lost() {
    const words = {
        title: 'Features missing',
        about: 'Number of instances on which a feature of listenq lacks a privilege or a kernel module. Without sock_diag there are no limits and no overflows.',
        unit: 'none',
        empty: 'Every feature works on every instance that reports.',
    };
    return rows(words, ['feature'], [{ name: 'instances', expr: `count by (feature) (listenq_feature_available{${FLEET}} == 0)` }]);
}

function versions() {
    const words = {
        title: 'Versions',
        about: 'Number of instances per version of listenq. More than one row means that a rollout is in progress or incomplete.',
        unit: 'none',
        empty: NOT_SCRAPED,
    };
    const expr = `count by (version, revision) (listenq_build_info{${FLEET}})`;
    return rows(words, ['version', 'revision'], [{ name: 'instances', expr }]);
}
