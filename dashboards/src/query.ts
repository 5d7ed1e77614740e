// Owns PromQL: which series a panel means, and the expressions that several panels share.

/** The labels by which a listener is known across all instances. */
export const LISTENER = 'instance, netns, protocol, address, port';

/** The labels that describe the owner of a listener. */
const OWNER = 'process, unit, k8s_namespace, k8s_pod';

/** Series of all chosen instances: `instance` is several, so Grafana writes it as a regular expression. */
export const FLEET = 'job="$job", instance=~"$instance"';

/** Series of the chosen instance: one value, not a regular expression, since an address may contain any character. */
export const HOST = 'job="$job", instance="$instance"';

/** Series of the chosen instance in the chosen namespaces. */
export const NAMESPACES = `${HOST}, netns=~"$netns"`;

/** Series of the chosen listener's namespace. */
export const NETNS = `${HOST}, netns="$netns"`;

/** Series of the chosen listener. The port of a Unix listener is empty, as its label is. */
export const ONE = `${NETNS}, protocol="$protocol", address="$address", port="$port"`;

/** The series that the rules in deploy/prometheus record: only values above 0. */
export const RECORDED = {
    length: 'listener:listenq_accept_queue_length:max',
    limit: 'listener:listenq_accept_queue_limit:max',
    oldest: 'listener:listenq_accept_queue_oldest_seconds:max',
    abandoned: 'listener:listenq_accept_queue_abandoned:max',
    full: 'listener:listenq_accept_queue_full_seconds:rate2m',
    overflows: 'listener:listenq_listener_overflows:increase2m',
    info: 'listener:listenq_listener_info:max',
    /** Sums per instance. */
    waiting: 'instance:listenq_accept_queue_length:sum',
    listeners: 'instance:listenq_listener_sockets:count',
};

/** The diagnoses in order of precedence, with their colors. */
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

/** The rate of a counter, over an interval that always contains enough scrapes. */
export function rate(metric: string, scope: string): string {
    return `rate(${metric}{${scope}}[$__rate_interval])`;
}

/** A counter per sampled second, such as the mean length: both counters come from the same samples. */
export function perSampledSecond(metric: string, scope: string, netns: string): string {
    const sampled = `sum by (instance, netns) (${rate('listenq_netns_sampled_seconds_total', netns)})`;
    return `${rate(metric, scope)} / on (instance, netns) group_left () ${sampled}`;
}

/** Adds the owner: each listener has exactly one series of listenq_listener_info, also when its owner is unknown. */
export function withOwner(listeners: string, scope: string, info = 'listenq_listener_info'): string {
    return `${listeners} * on (${LISTENER}) group_left (${OWNER}) ${info}{${scope}}`;
}

/** Like `withOwner`, with recorded owners: a listener that is not recorded yet has no owner. */
export function withRecordedOwner(listeners: string, scope: string): string {
    return `${withOwner(listeners, scope, RECORDED.info)} or on (${LISTENER}) ${listeners}`;
}

/** The ten listeners with the highest values. */
export function topTen(series: string): string {
    return `max by (${LISTENER}) (topk(10, ${series}))`;
}

/** The first diagnosis of each listener in order of precedence, as a number: see `rankMapping`. */
export function worstDiagnosis(scope: string): string {
    const ranked = DIAGNOSES.map(
        ({ name }, i) => `${rank(i)} * (listenq_listener_diagnosis{${scope}, diagnosis="${name}"} == 1)`,
    );
    return `max by (${LISTENER}) (${ranked.join(' or ')})`;
}

/** Only the listeners with a diagnosis. */
export function inTrouble(listeners: string, scope: string): string {
    return `${listeners} and on (${LISTENER}) (listenq_listener_diagnosis{${scope}} == 1)`;
}

/** The age of the last good sample of a namespace at the scrape. */
export function ageOfSample(scope: string): string {
    const last = `listenq_netns_last_sample_timestamp_seconds{${scope}}`;
    // The timestamp of a scrape is its beginning, and a later sample may be in it.
    return `clamp_min(timestamp(${last}) - ${last}, 0)`;
}

/** A number that is 0 where nothing matches, and absent where no instance reports. */
export function orZero(expr: string, scope: string): string {
    return `${expr} or 0 * count(listenq_build_info{${scope}})`;
}

/** The number of the diagnosis at this index; 0 is no diagnosis. */
export function rank(place: number): number {
    return DIAGNOSES.length - place;
}
