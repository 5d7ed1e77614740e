// Converts answers of Prometheus to data frames, like Grafana's data source.
import { type DataFrame, FieldType, type Labels, toDataFrame } from '@grafana/data';

/** A query of a panel. */
export interface Target {
    refId: string;
    expr: string;
    legendFormat?: string;
    range?: boolean;
    format?: string;
}

/** The time range in seconds, and the values of the variables. */
export interface Look {
    prometheus: string;
    from: number;
    to: number;
    /** The scrape interval. */
    scrape: number;
    variables: Record<string, string>;
}

interface Series {
    metric: Labels;
    value?: [number, string];
    values?: [number, string][];
}

const STEPS = 200;

/** Replaces variables as Grafana does. */
export function fill(text: string, look: Look): string {
    const { variables, from, to, scrape } = look;
    const rateInterval = Math.max(4 * scrape, stepOf(look) + scrape);
    const times = { rate_interval: `${rateInterval}s`, range: `${to - from}s`, interval: `${stepOf(look)}s` };
    const all = { ...Object.fromEntries(Object.entries(times).map(([k, v]) => [`__${k}`, v])), ...variables };
    return text.replace(/\$(\w+)|\$\{(\w+)(?::\w+)?\}/g, (whole, plain?: string, braced?: string) => all[plain ?? braced ?? ''] ?? whole);
}

function stepOf({ from, to, scrape }: Look): number {
    return Math.max(Math.min(scrape, 15), Math.round((to - from) / STEPS));
}

/** The frames of one query. */
export async function ask(target: Target, look: Look, several: boolean): Promise<DataFrame[]> {
    const query = encodeURIComponent(fill(target.expr, look));
    const step = stepOf(look);
    const path = target.range
        ? `query_range?query=${query}&start=${look.from}&end=${look.to}&step=${step}`
        : `query?query=${query}&time=${look.to}`;
    const answer = await (await fetch(`${look.prometheus}/api/v1/${path}`)).json();
    if (answer.status !== 'success') throw new Error(`${target.expr}: ${answer.error}`);
    const result: Series[] = answer.data.result;
    if (target.format === 'table') return result.length > 0 ? [table(target, result, several)] : [];
    return result.map((series) => line(target, series, look));
}

/** Makes one point for every step, as Grafana does, so that a line ends where its series ends. */
function everyStep(values: [number, string][], look: Look): [number, string][] {
    const known = new Map(values);
    const count = Math.floor((look.to - look.from) / stepOf(look)) + 1;
    const times = Array.from({ length: count }, (_, i) => look.from + i * stepOf(look));
    return times.map((at) => [at, known.get(at) ?? 'NaN']);
}

function line(target: Target, { metric, value, values }: Series, look: Look): DataFrame {
    const points = values ? everyStep(values, look) : value ? [value] : [];
    const name = (target.legendFormat ?? '').replace(/\{\{(\w+)\}\}/g, (_, label: string) => metric[label] ?? '');
    return toDataFrame({
        refId: target.refId,
        fields: [
            { name: 'Time', type: FieldType.time, values: points.map(([at]) => at * 1000) },
            {
                name: 'Value',
                type: FieldType.number,
                labels: metric,
                config: { displayNameFromDS: name },
                values: points.map(([, v]) => (v === 'NaN' ? null : Number(v))),
            },
        ],
    });
}

function table(target: Target, result: Series[], several: boolean): DataFrame {
    const labels = [...new Set(result.flatMap(({ metric }) => Object.keys(metric)))].sort();
    return toDataFrame({
        refId: target.refId,
        fields: [
            { name: 'Time', type: FieldType.time, values: result.map(({ value }) => (value?.[0] ?? 0) * 1000) },
            ...labels.map((label) => ({
                name: label,
                type: FieldType.string,
                values: result.map(({ metric }) => metric[label] ?? ''),
            })),
            {
                name: several ? `Value #${target.refId}` : 'Value',
                type: FieldType.number,
                values: result.map(({ value }) => Number(value?.[1])),
            },
        ],
    });
}
