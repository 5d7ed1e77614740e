// The dashboard Fleet: which listeners of all instances are in trouble now.
import type { Dashboard } from '@grafana/grafana-foundation-sdk/dashboard';

import { link, make, marks, type Section, several, to, toListener } from './dashboard.js';
import { colored, type Column, diagnosisColumn, inDiagnosisColors, lines, linked, number, rows, sorted, type Words } from './panel.js';
import { ageOfSample, FLEET, inTrouble, LISTENER, orZero, rate, RECORDED, topTen, withRecordedOwner, worstDiagnosis } from './query.js';

const LABELS = ['instance', 'netns', 'address', 'port', 'process'];
const MORE = ['protocol', 'unit', 'k8s_namespace', 'k8s_pod'];
const NOT_SCRAPED = 'No instance reports for this job: is listenq scraped, and is the right job selected above?';
const AS_RECORDED = 'Valid only if "Listeners watched" shows a number, since rules record both.';
/** Per second, over the last two minutes. */
const OVERFLOWS = `${RECORDED.overflows}{${FLEET}} / 120`;
const UNRECORDED = 'The recording rules have no result: are recording.yml and alerts.yml loaded, and is the job named listenq?';
const TROUBLE = `listenq_listener_diagnosis{${FLEET}} == 1`;

export function fleet(): Dashboard {
    return make({
        uid: 'listenq-fleet',
        title: 'listenq / Fleet',
        about: 'Which listeners of all instances are in trouble now: refused connections, full queues, long waits.',
        variables: [several('instance', 'Instance', 'listenq_build_info{job="$job"}')],
        links: [link('Host', 'listenq-host', []), link('Listener', 'listenq-listener', [])],
        annotations: [
            marks(
                'Alerts',
                `count by (alertname, severity) (ALERTS{alertname=~"ListenQueue.+", alertstate="firing", ${FLEET}})`,
                '{{alertname}}',
                'red',
            ),
        ],
        sections: [now(), top(), overTime(), itself()],
    });
}

function now(): Section {
    return {
        title: 'Now',
        lines: [
            { height: 4, panels: [[4, troubled()], [4, overflowing()], [4, waiting()], [4, listeners()], [4, down()], [4, unseen()]] },
            { height: 9, panels: [[24, trouble()]] },
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
    return number(words, orZero(`count(count by (${LISTENER}) (${TROUBLE}))`, FLEET), [[1, 'red']]);
}

function overflowing() {
    const words = {
        title: 'Overflows per second',
        about: 'Refusals per second because an accept queue was full, counted by the kernels of all instances (ListenOverflows). The healthy value is 0.',
        unit: 'cps',
        empty: NOT_SCRAPED,
    };
    return number(words, `sum(${rate('listenq_netns_listen_overflows_total', FLEET)})`, [[0.001, 'red']]);
}

function waiting() {
    const words = {
        title: 'Connections waiting',
        about: 'Connections in the accept queues of all listeners, recorded once a minute. A small number is normal; a large number that stays is not.',
        unit: 'none',
        empty: UNRECORDED,
    };
    return number(words, `sum(${RECORDED.waiting}{${FLEET}})`, []);
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
        about: 'Every listener with a diagnosis now. Rules record owner and numbers once a minute. The first diagnosis in order of precedence is shown. Click an address to see the listener.',
        unit: 'none',
        empty: 'No listener is in trouble, provided that "Instances down" shows 0.',
    };
    const columns: Column[] = [
        diagnosisColumn(withRecordedOwner(worstDiagnosis(FLEET), FLEET)),
        { name: 'length', expr: troubledMax(`${RECORDED.length}{${FLEET}}`) },
        { name: 'limit', expr: troubledMax(`${RECORDED.limit}{${FLEET}}`) },
        { name: 'oldest wait', unit: 's', expr: troubledMax(`${RECORDED.oldest}{${FLEET}}`) },
        { name: 'overflows', unit: 'cps', expr: troubledMax(OVERFLOWS), properties: colored([[0.001, 'red']]) },
    ];
    return sorted(toOne(words, columns), 'overflows');
}

function troubledMax(series: string): string {
    return `max by (${LISTENER}) (${inTrouble(series, FLEET)})`;
}

function top(): Section {
    return {
        title: 'Top 10',
        lines: [{ height: 9, panels: [[12, topOverflows()], [12, topFull()]] }, { height: 9, panels: [[12, topWait()], [12, topAbandoned()]] }],
    };
}

function topOverflows() {
    const words = {
        title: 'Most overflows',
        about: 'Listeners with the most refusals within the last two minutes. While several listeners of one namespace overflow at once, the split between them is an estimate.',
        unit: 'cps',
        empty: `No queue overflows. ${AS_RECORDED}`,
    };
    return ranking(words, 'overflows', topTen(OVERFLOWS));
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
        about: 'How long the first connection in the queue has waited, recorded once a minute. Users notice waits of seconds.',
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
    return sorted(toOne(words, [{ name, expr: withRecordedOwner(expr, FLEET) }]), name);
}

function toOne(words: Words, columns: Column[]) {
    const table = rows(words, LABELS, columns, MORE);
    const host = to('listenq-host', [], ['instance']);
    const listener = toListener([], ['instance', 'netns', 'protocol', 'address', 'port']);
    linked(table, 'instance', 'Show the host', `${host}&\${__url_time_range}`);
    return linked(table, 'address', 'Show the listener', listener);
}

function overTime(): Section {
    return { title: 'Over time', lines: [{ height: 9, panels: [[12, diagnosesOverTime()], [12, overflowsOverTime()]] }] };
}

function diagnosesOverTime() {
    const words = {
        title: 'Listeners in trouble by diagnosis',
        about: 'Number of listeners with each diagnosis. A listener with two diagnoses counts twice.',
        unit: 'none',
        empty: 'No listener was in trouble.',
    };
    const query = { name: '{{diagnosis}}', expr: `sum by (diagnosis) (listenq_listener_diagnosis{${FLEET}})` };
    return inDiagnosisColors(lines(words, [query]).decimals(0));
}

function overflowsOverTime() {
    const words = {
        title: 'Overflows by instance',
        about: 'Refusals per second, for the ten instances with the most. A steady rate means too little capacity; spikes mean bursts against short queues.',
        unit: 'cps',
        empty: NOT_SCRAPED,
    };
    const expr = `topk(10, sum by (instance) (${rate('listenq_netns_listen_overflows_total', FLEET)}))`;
    return lines(words, [{ name: '{{instance}}', expr }]);
}

function itself(): Section {
    return { title: 'listenq', lines: [{ height: 8, panels: [[8, stale()], [8, lost()], [8, versions()]] }] };
}

function stale() {
    const words = {
        title: 'Oldest sample',
        about: 'Age at the scrape of the last good sample, for the namespace with the oldest one, on the ten worst instances. Far below 1 s is normal; above 10 s the gauges of the namespace are absent.',
        unit: 's',
        empty: NOT_SCRAPED,
    };
    const expr = `topk(10, max by (instance) (${ageOfSample(FLEET)}))`;
    return lines(words, [{ name: '{{instance}}', expr }], [[10, 'red']]);
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
