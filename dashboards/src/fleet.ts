// Owns the Fleet dashboard: who is in trouble now, across all instances.
import type { Dashboard } from '@grafana/grafana-foundation-sdk/dashboard';

import { link, make, marks, type Section, several, to, toListener } from './dashboard.js';
import { colored, type Column, diagnosisColumn, inDiagnosisColors, lines, linked, number, rows, sorted, type Words } from './panel.js';
import { ageOfSample, FLEET, inTrouble, LISTENER, orZero, rate, RECORDED, topTen, withRecordedOwner, worstDiagnosis } from './query.js';

const LABELS = ['instance', 'netns', 'address', 'port', 'process'];
const MORE = ['protocol', 'unit', 'k8s_namespace', 'k8s_pod'];
const NOBODY = 'No instance reports under this job: is listenq scraped, and is the job chosen above its own?';
const AS_RECORDED = 'That is so if "Listeners watched" has a number: both are recorded.';
/** Of the last two minutes, in a second. */
const OVERFLOWS = `${RECORDED.overflows}{${FLEET}} / 120`;
const UNRECORDED = 'The recording rules give nothing: are recording.yml and alerts.yml loaded, and is the job called listenq?';
const TROUBLE = `listenq_listener_diagnosis{${FLEET}} == 1`;

export function fleet(): Dashboard {
    return make({
        uid: 'listenq-fleet',
        title: 'listenq / Fleet',
        about: 'Which listeners of all instances are in trouble now: who refuses connections, whose queue is full, who keeps clients waiting.',
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
        about: 'Listeners with at least one diagnosis that holds now. Anything above 0 is worth a look; the table below names them.',
        unit: 'none',
        empty: NOBODY,
    };
    return number(words, orZero(`count(count by (${LISTENER}) (${TROUBLE}))`, FLEET), [[1, 'red']]);
}

function overflowing() {
    const words = {
        title: 'Overflows per second',
        about: 'Connections that the kernels of all instances turned away because an accept queue was full (ListenOverflows). In health it is 0.',
        unit: 'cps',
        empty: NOBODY,
    };
    return number(words, `sum(${rate('listenq_netns_listen_overflows_total', FLEET)})`, [[0.001, 'red']]);
}

function waiting() {
    const words = {
        title: 'Connections waiting',
        about: 'Connections that waited to be accepted within the last minute, at one instant and all listeners together. A small number is normal; one that stays is not.',
        unit: 'none',
        empty: UNRECORDED,
    };
    return number(words, `sum(${RECORDED.waiting}{${FLEET}})`, []);
}

function listeners() {
    const words = {
        title: 'Listeners watched',
        about: 'Listeners that have series, all instances together. A sudden fall means that instances or namespaces are not seen any more.',
        unit: 'none',
        empty: UNRECORDED,
    };
    return number(words, `sum(${RECORDED.listeners}{${FLEET}})`, []);
}

function down() {
    const words = {
        title: 'Instances down',
        about: 'Instances that Prometheus could not scrape last time: nothing below tells of them.',
        unit: 'none',
        empty: NOBODY,
    };
    return number(words, `sum(1 - up{${FLEET}})`, [[1, 'red']]);
}

function unseen() {
    const words = {
        title: 'Namespaces not seen',
        about: 'Network namespaces that are there but may not be entered: their listeners are missing here. listenq needs CAP_SYS_ADMIN and CAP_SYS_PTRACE for them.',
        unit: 'none',
        empty: NOBODY,
    };
    return number(words, `sum(listenq_namespaces{${FLEET}, state="inaccessible"})`, [[1, 'orange']]);
}

function trouble() {
    const words = {
        title: 'Listeners in trouble now',
        about: 'Every listener with a diagnosis that holds now; its owner and the numbers are recorded once a minute. Of several diagnoses the one that counts most is shown. Click an address to see the listener.',
        unit: 'none',
        empty: 'No listener is in trouble, as long as "Instances down" says 0.',
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
        about: 'Listeners that turned away the most connections in the last two minutes. While several listeners of one namespace overflow at once the split between them is an estimate.',
        unit: 'cps',
        empty: `No connection is turned away. ${AS_RECORDED}`,
    };
    return ranking(words, 'overflows', topTen(OVERFLOWS));
}

function topFull() {
    const words = {
        title: 'Longest full',
        about: 'Share of the last two minutes during which a socket of the listener was full. From 20 % on the server accepts too slowly, and a longer queue only adds wait.',
        unit: 'percentunit',
        empty: `No queue is full at any time. ${AS_RECORDED}`,
    };
    return ranking(words, 'time full', topTen(`clamp_max(${RECORDED.full}{${FLEET}}, 1)`));
}

function topWait() {
    const words = {
        title: 'Longest wait',
        about: 'How long the connection at the head of the queue has waited, as of the last minute. Seconds mean that clients notice.',
        unit: 's',
        empty: `No connection waits. ${AS_RECORDED}`,
    };
    return ranking(words, 'oldest wait', topTen(`${RECORDED.oldest}{${FLEET}}`));
}

function topAbandoned() {
    const words = {
        title: 'Most abandoned',
        about: 'Waiting connections whose client has already closed, within the last minute: work that nobody wants any more. The queue is deeper than the patience of its clients.',
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
        about: 'How many listeners had each diagnosis. A listener with two is counted in both.',
        unit: 'none',
        empty: 'No listener was in trouble.',
    };
    const query = { name: '{{diagnosis}}', expr: `sum by (diagnosis) (listenq_listener_diagnosis{${FLEET}})` };
    return inDiagnosisColors(lines(words, [query]).decimals(0));
}

function overflowsOverTime() {
    const words = {
        title: 'Overflows by instance',
        about: 'Connections turned away by each kernel, the ten instances with the most at any time. Steady means too little capacity; spikes mean bursts against short queues.',
        unit: 'cps',
        empty: NOBODY,
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
        about: 'How old the last good sample of the namespace that is worst off was at the scrape, the ten worst instances. Far below a second is normal; above 10 s its gauges are absent.',
        unit: 's',
        empty: NOBODY,
    };
    const expr = `topk(10, max by (instance) (${ageOfSample(FLEET)}))`;
    return lines(words, [{ name: '{{instance}}', expr }], [[10, 'red']]);
}

function lost() {
    const words = {
        title: 'Features missing',
        about: 'On how many instances a feature of listenq lacks a privilege or a kernel module. Without sock_diag there are no limits and no overflows.',
        unit: 'none',
        empty: 'Every feature works on every instance that reports.',
    };
    return rows(words, ['feature'], [{ name: 'instances', expr: `count by (feature) (listenq_feature_available{${FLEET}} == 0)` }]);
}

function versions() {
    const words = {
        title: 'Versions',
        about: 'How many instances run which listenq. More than one line is a rollout under way, or one that got stuck.',
        unit: 'none',
        empty: NOBODY,
    };
    const expr = `count by (version, revision) (listenq_build_info{${FLEET}})`;
    return rows(words, ['version', 'revision'], [{ name: 'instances', expr }]);
}
