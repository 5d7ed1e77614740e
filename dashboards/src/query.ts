// PromQL: the selectors of the panels, and the expressions that several panels share.

/** The labels of an instance. Series without the label `cluster` match each other as well. */
export const INSTANCE = 'cluster, instance';

/** The labels of a namespace across all instances. */
const OF_NETNS = `${INSTANCE}, netns`;

/** The labels of a listener across all instances. */
export const LISTENER = `${OF_NETNS}, protocol, address, port`;

/** The labels that describe the owner of a listener in an incident. */
const OWNER = 'service, process, unit, k8s_namespace, k8s_pod';

/** The chosen clusters. "All" is `.*`, which series without the label match. */
export const CLUSTERS = 'job="$job", cluster=~"$cluster"';

/** Series of all chosen instances. `instance` has several values, so Grafana writes it as a regular expression. */
export const FLEET = `${CLUSTERS}, instance=~"$instance"`;

/** Series of the chosen instance. It is one value and no regular expression, since an address may contain any character. */
export const HOST = `${CLUSTERS}, instance="$instance"`;

/** Series of the chosen instance in the chosen namespaces. */
export const NAMESPACES = `${HOST}, netns=~"$netns"`;

/** Series of the chosen listener's namespace. */
export const NETNS = `${HOST}, netns="$netns"`;

/** Series of the chosen listener. The port of a Unix listener is empty, like its label. */
export const ONE = `${NETNS}, protocol="$protocol", address="$address", port="$port"`;

/** The owners chosen on Fleet. */
const SERVICES = 'service=~"$service", unit=~"$unit"';

/** The owners chosen on Host. */
const PROCESSES = 'process=~"$process", unit=~"$unit"';

/** The series that the rules in deploy/prometheus record: only values above 0. */
export const RECORDED = {
    length: 'listener:listenq_accept_queue_length:max',
    limit: 'listener:listenq_accept_queue_limit:max',
    oldest: 'listener:listenq_accept_queue_oldest_seconds:max',
    abandoned: 'listener:listenq_accept_queue_abandoned:max',
    full: 'listener:listenq_accept_queue_full_seconds:rate2m',
    overflows: 'listener:listenq_listener_overflows:increase2m',
    /** The owner of every listener in an incident, and the number of its cause. */
    incident: 'listener:listenq_listener_incident:max',
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

/** The causes, with the numbers that listenq_listener_incident gives them (docs/causes.md). */
export const CAUSES = [
    'stopped',
    'frozen',
    'descriptors',
    'connection_limit',
    'idle_clients',
    'nobody_accepts',
    'cpu_throttled',
    'cpu_starved',
    'cpu_steal',
    'cpu_bound',
    'memory_stall',
    'disk_wait',
    'waits_for',
    'lock',
].map((name, i) => ({ name, number: i + 1 }));

/** The rate of a counter, over an interval that always contains enough scrapes. */
export function rate(metric: string, scope: string): string {
    return `rate(${metric}{${scope}}[$__rate_interval])`;
}

/** A counter per sampled second, such as the mean length: both counters come from the same samples. */
export function perSampledSecond(metric: string, scope: string, netns: string): string {
    const sampled = `sum by (${OF_NETNS}) (${rate('listenq_netns_sampled_seconds_total', netns)})`;
    return `${rate(metric, scope)} / on (${OF_NETNS}) group_left () ${sampled}`;
}

/** The share of connection attempts that the kernel refused; 0 where there was no attempt. */
export function shareRefused(scope: string, by: string): string {
    const sum = (metric: string) => `sum ${by}(${rate(metric, scope)})`;
    const refused = sum('listenq_netns_listen_overflows_total');
    return `${refused} / (${refused} + ${sum('listenq_netns_passive_opens_total')} > 0) or 0 * ${refused}`;
}

/** Returns the series without a restriction. */
const every = (series: string): string => series;

/** The `k` series of a counter that grew most within the time shown: the same series at every point of a graph. */
export function grewMost(k: number, metric: string, scope: string, of = every): string {
    return `${rate(metric, scope)} and topk(${k}, ${of(`increase(${metric}{${scope}}[$__range] @ end())`)})`;
}

/** The `k` series of a gauge that were highest within the time shown. */
export function highest(k: number, metric: string, scope: string, of = every): string {
    return `${metric}{${scope}} and topk(${k}, ${of(`max_over_time(${metric}{${scope}}[$__range] @ end()) > 0`)})`;
}

/** The `k` series that were above 0 longest within the time shown. */
export function longest(k: number, metric: string, scope: string, of = every): string {
    return `${metric}{${scope}} and topk(${k}, ${of(`avg_over_time(${metric}{${scope}}[$__range] @ end()) > 0`)})`;
}

/** Like `highest`, summed over the listeners of each namespace. */
export function highestOfNetns(k: number, metric: string, scope: string): string {
    const now = `sum by (${OF_NETNS}) (${metric}{${scope}})`;
    const most = `sum by (${OF_NETNS}) (max_over_time(${metric}{${scope}}[$__range] @ end()))`;
    return `${now} and topk(${k}, ${most})`;
}

/** Adds the owner that listenq fixed for the incident. A listener without an incident is shown unless an owner is chosen. */
export function withOwner(listeners: string, incident = `${RECORDED.incident}{${FLEET}, ${SERVICES}}`): string {
    const owned = `(${listeners}) + on (${LISTENER}) group_left (${OWNER}) 0 * ${incident}`;
    // listenq_build_info has none of these labels: only "All" matches it.
    const others = `(${listeners}) and on (${INSTANCE}) listenq_build_info{${FLEET}, ${SERVICES}}`;
    return `${owned} or on (${LISTENER}) (${others})`;
}

/** Like `withOwner`, with the last owner of each listener within the time shown. */
export function withLastOwner(listeners: string): string {
    const last = `last_over_time(${RECORDED.incident}{${FLEET}, ${SERVICES}}[$__range])`;
    return withOwner(listeners, `topk by (${LISTENER}) (1, ${last})`);
}

/** Only the listeners of the owners that are chosen on Host. */
export function ofOwner(listeners: string): string {
    return `${listeners} and on (${LISTENER}) listenq_listener_info{${NAMESPACES}, ${PROCESSES}}`;
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

/** The age of the last good sample of a namespace at the scrape. */
export function ageOfSample(scope: string): string {
    const last = `listenq_netns_last_sample_timestamp_seconds{${scope}}`;
    // The timestamp of a scrape is its beginning, and a later sample may be in it.
    return `clamp_min(timestamp(${last}) - ${last}, 0)`;
}

/** A number that is 0 if no series matches, and absent if no instance reports. */
export function orZero(expr: string, scope: string): string {
    return `${expr} or 0 * count(listenq_build_info{${scope}})`;
}

/** The chosen instance with the label `host`, also while the instance is down: without its port, an IPv6 address in brackets. */
export function hostOfInstance(): string {
    const last = `last_over_time(listenq_build_info{${HOST}}[$__range])`;
    const withoutPort = `label_replace(${last}, "host", "$1", "instance", "(.+?)(:[0-9]+)?")`;
    return `label_replace(${withoutPort}, "host", "[$1]", "instance", "([0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)")`;
}

/** Restarts of listenq, and of the server, whose listener appears again after a scrape without it. */
export const RESTARTS = {
    listenq: `changes(process_start_time_seconds{${HOST}}[$__rate_interval]) > 0`,
    server:
        `listenq_listener_sockets{${ONE}} > 0 and (min_over_time(listenq_listener_sockets{${ONE}}[$__rate_interval]) == 0 or ` +
        `count_over_time(listenq_listener_sockets{${ONE}}[$__rate_interval]) ` +
        `< on (${INSTANCE}) group_left () sum_over_time(up{${HOST}}[$__rate_interval]))`,
};

/** The number of the diagnosis at this index; 0 is no diagnosis. */
export function rank(place: number): number {
    return DIAGNOSES.length - place;
}
