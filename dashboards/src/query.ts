// Owns PromQL: which series a panel means, and the expressions that several panels share.

/** The labels by which a listener is known across all instances. */
export const LISTENER = 'instance, netns, protocol, address, port';

/** What a table tells of the owner of a listener. */
const OWNER = 'process, unit, k8s_namespace, k8s_pod';

/** Series of all chosen instances: `instance` is several, so Grafana writes it as a regular expression. */
export const FLEET = 'job="$job", instance=~"$instance"';

/** Series of the chosen instance: one value, written as it is, since an address may hold any character. */
export const HOST = 'job="$job", instance="$instance"';

/** Series of the chosen instance in the chosen namespaces. */
export const NAMESPACES = `${HOST}, netns=~"$netns"`;

/** Series of the chosen listener's namespace. */
export const NETNS = `${HOST}, netns="$netns"`;

/** Series of the chosen listener. The port of a Unix listener is empty, as its label is. */
export const ONE = `${NETNS}, protocol="$protocol", address="$address", port="$port"`;

/** What the rules in deploy/prometheus record of listeners: only those above 0, of many thousand. */
export const RECORDED = {
    length: 'listener:listenq_accept_queue_length:max',
    limit: 'listener:listenq_accept_queue_limit:max',
    oldest: 'listener:listenq_accept_queue_oldest_seconds:max',
    abandoned: 'listener:listenq_accept_queue_abandoned:max',
    full: 'listener:listenq_accept_queue_full_seconds:rate2m',
    overflows: 'listener:listenq_listener_overflows:increase2m',
    info: 'listener:listenq_listener_info:max',
    /** These are sums, of each instance. */
    waiting: 'instance:listenq_accept_queue_length:sum',
    listeners: 'instance:listenq_listener_sockets:count',
};

/** The diagnoses, the one that counts most first, and how they look. */
export const DIAGNOSES = [
    { name: 'imbalance', color: 'purple' },
    { name: 'stalled', color: 'dark-red' },
    { name: 'abandoned', color: 'red' },
    { name: 'slow_accept', color: 'orange' },
    { name: 'standing_queue', color: 'dark-orange' },
    { name: 'short_queue', color: 'yellow' },
    { name: 'stale_limit', color: 'blue' },
    { name: 'syn_flood', color: 'dark-purple' },
    { name: 'not_accepting', color: 'text' },
];

/** The rate of a counter, over an interval that always holds enough samples. */
export function rate(metric: string, scope: string): string {
    return `rate(${metric}{${scope}}[$__rate_interval])`;
}

/** The mean length, or another share of sampled time: both counters are of the same samples. */
export function perSampledSecond(metric: string, scope: string, netns: string): string {
    const sampled = `sum by (instance, netns) (${rate('listenq_netns_sampled_seconds_total', netns)})`;
    return `${rate(metric, scope)} / on (instance, netns) group_left () ${sampled}`;
}

/** Adds the owner to listeners: each has exactly one series of listenq_listener_info, also when nobody is known. */
export function withOwner(listeners: string, scope: string, info = 'listenq_listener_info'): string {
    return `${listeners} * on (${LISTENER}) group_left (${OWNER}) ${info}{${scope}}`;
}

/** As `withOwner`, by the owners that the rules recorded within the last minute: who is not among them yet has none. */
export function withRecordedOwner(listeners: string, scope: string): string {
    return `${withOwner(listeners, scope, RECORDED.info)} or on (${LISTENER}) ${listeners}`;
}

/** The ten with the most, as listeners. */
export function topTen(series: string): string {
    return `max by (${LISTENER}) (topk(10, ${series}))`;
}

/** The diagnosis that counts most at each listener, as a number: see `rankMapping`. */
export function worstDiagnosis(scope: string): string {
    const ranked = DIAGNOSES.map(
        ({ name }, i) => `${rank(i)} * (listenq_listener_diagnosis{${scope}, diagnosis="${name}"} == 1)`,
    );
    return `max by (${LISTENER}) (${ranked.join(' or ')})`;
}

/** What holds only of listeners in trouble. */
export function inTrouble(listeners: string, scope: string): string {
    return `${listeners} and on (${LISTENER}) (listenq_listener_diagnosis{${scope}} == 1)`;
}

/** How old the last good sample of a namespace was when it was scraped. */
export function ageOfSample(scope: string): string {
    const last = `listenq_netns_last_sample_timestamp_seconds{${scope}}`;
    // A scrape counts from its beginning, and may meet a sample that came after that.
    return `clamp_min(timestamp(${last}) - ${last}, 0)`;
}

/** A number that is 0 where nothing counts, but absent where nothing reports. */
export function orZero(expr: string, scope: string): string {
    return `${expr} or 0 * count(listenq_build_info{${scope}})`;
}

/** The number of the diagnosis at this place of the list; 0 is none. */
export function rank(place: number): number {
    return DIAGNOSES.length - place;
}
