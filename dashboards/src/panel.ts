// The look of panels: one function for each kind.
import type { Builder } from '@grafana/grafana-foundation-sdk/cog';
import * as common from '@grafana/grafana-foundation-sdk/common';
import {
    type DynamicConfigValue,
    FieldColorBuilder,
    FieldColorModeId,
    MappingType,
    ThresholdsConfigBuilder,
    ThresholdsMode,
    type ValueMap,
} from '@grafana/grafana-foundation-sdk/dashboard';
import * as prometheus from '@grafana/grafana-foundation-sdk/prometheus';
import * as stat from '@grafana/grafana-foundation-sdk/stat';
import * as statetimeline from '@grafana/grafana-foundation-sdk/statetimeline';
import * as table from '@grafana/grafana-foundation-sdk/table';
import * as timeseries from '@grafana/grafana-foundation-sdk/timeseries';

import { CAUSES, DIAGNOSES, rank } from './query.js';

/** The texts of a panel. */
export interface Words {
    title: string;
    /** What the panel shows, what it does not show, and which values are bad. */
    about: string;
    unit: string;
    /** What an empty panel means. */
    empty: string;
}

/** A query and the name of its result: a legend, or the column of a table. */
export interface Query {
    name: string;
    expr: string;
}

/** A step of a threshold: this color from this value on. */
export type Step = [from: number, color: string];

/** A column of a table that is not a label. */
export interface Column extends Query {
    unit?: string;
    properties?: DynamicConfigValue[];
}

export const DATASOURCE = { type: 'prometheus', uid: '${datasource}' };

/** The look of a series that is a limit. */
export const LIMIT: DynamicConfigValue[] = [
    { id: 'color', value: { mode: 'fixed', fixedColor: 'red' } },
    { id: 'custom.lineStyle', value: { fill: 'dash', dash: [10, 10] } },
    { id: 'custom.fillOpacity', value: 0 },
];

/** A count with separators between thousands. */
export const COUNT = 'locale';

/** Events per second. */
export const PER_SECOND = 'suffix:/s';

/** Smallest maximum of an axis: where all values are 0 Grafana would draw it up to 100, or to 10,000 %. */
const SMALLEST_AXIS: Record<string, number> = { s: 0.01, percentunit: 0.1 };

/** Lines over time. */
export function lines(words: Words, queries: Query[], steps?: Step[]): timeseries.PanelBuilder {
    const panel = dress(new timeseries.PanelBuilder(), words)
        .min(0)
        .axisSoftMax(SMALLEST_AXIS[words.unit] ?? 1)
        .lineWidth(1)
        .fillOpacity(10)
        .showPoints(common.VisibilityMode.Auto)
        .spanNulls(false)
        .colorScheme(new FieldColorBuilder().mode(FieldColorModeId.PaletteClassic))
        .legend(
            new common.VizLegendOptionsBuilder()
                .showLegend(true)
                .displayMode(common.LegendDisplayMode.Table)
                .placement(common.LegendPlacement.Bottom)
                .calcs(['lastNotNull', 'max'])
                // Where names come from labels, the series with the largest value comes first.
                .sortBy('Max')
                .sortDesc(true),
        )
        .tooltip(multiTooltip());
    if (steps) {
        panel
            .thresholds(thresholds(steps))
            .thresholdsStyle(
                new common.GraphThresholdsStyleConfigBuilder().mode(common.GraphThresholdsStyleMode.Dashed),
            );
    }
    queries.forEach((query, i) => panel.withTarget(range(query, refId(i))));
    return panel;
}

/** One present number, colored by thresholds. */
export function number(words: Words, expr: string, steps: Step[]): stat.PanelBuilder {
    return dress(new stat.PanelBuilder(), words)
        .thresholds(thresholds(steps))
        .colorScheme(new FieldColorBuilder().mode(FieldColorModeId.Thresholds))
        .colorMode(common.BigValueColorMode.Value)
        .graphMode(common.BigValueGraphMode.None)
        .textMode(common.BigValueTextMode.Value)
        .reduceOptions(new common.ReduceDataOptionsBuilder().calcs(['lastNotNull']))
        .withTarget(instant({ name: words.title, expr }, 'A'));
}

/** A state timeline: bands that show when each state held. */
export function bands(words: Words, query: Query, states: ValueMap): statetimeline.PanelBuilder {
    return dress(new statetimeline.PanelBuilder(), words)
        .mappings([states])
        .colorScheme(new FieldColorBuilder().mode(FieldColorModeId.Thresholds))
        .thresholds(thresholds([]))
        .mergeValues(true)
        .showValue(common.VisibilityMode.Auto)
        .rowHeight(0.7)
        .fillOpacity(80)
        .legend(
            new common.VizLegendOptionsBuilder()
                .showLegend(false)
                .displayMode(common.LegendDisplayMode.List)
                .placement(common.LegendPlacement.Bottom),
        )
        .tooltip(multiTooltip())
        .withTarget(range(query, 'A'));
}

/** The width of label columns. */
const WIDTHS: Record<string, number> = {
    alertname: 220,
    severity: 85,
    cluster: 110,
    service: 215,
    instance: 160,
    netns: 130,
    address: 225,
    port: 65,
    protocol: 80,
    process: 130,
    unit: 210,
    k8s_namespace: 130,
    k8s_pod: 240,
    k8s_container: 130,
    container_id: 130,
};
/** The width of other columns: a table scrolls sideways instead of truncating numbers. */
const COLUMN_WIDTH = 90;
const LETTER_WIDTH = 9;
/** The width of the longest name. */
const DIAGNOSIS_WIDTH = 130;
const CAUSE_WIDTH = 140;

/** A table of present values: labels, a column for each query, and less important labels. */
export function rows(words: Words, labels: string[], columns: Column[], more: string[] = []): table.PanelBuilder {
    const panel = dress(new table.PanelBuilder(), words)
        .thresholds(thresholds([]))
        .cellHeight(common.TableCellHeight.Sm)
        .filterable(true)
        // An empty cell differs from an empty table.
        .overrideByRegexp('.*', [{ id: 'noValue', value: '–' }]);
    columns.forEach((column, i) => panel.withTarget(instantTable(column, refId(i))));
    if (columns.length > 1) {
        panel.withTransformation({ id: 'merge', options: {} });
    }
    // A port is not a quantity.
    for (const label of [...labels, ...more]) {
        const width = WIDTHS[label];
        const narrow = width ? [{ id: 'custom.width', value: width }] : [];
        const whole = { id: 'custom.cellOptions', value: { type: 'auto', wrapText: true } };
        panel.overrideByName(label, [{ id: 'unit', value: 'string' }, whole, ...narrow]);
    }
    for (const { name, unit, properties } of columns.filter(({ name }) => name !== '')) {
        const own = unit ? [{ id: 'unit', value: unit }] : [];
        const width = labels.length > 1 ? [{ id: 'custom.width', value: Math.max(COLUMN_WIDTH, LETTER_WIDTH * (name.length + 4)) }] : [];
        const isGiven = properties?.some(({ id }) => id === 'custom.width');
        const all = [...own, ...(isGiven ? [] : width), ...(properties ?? [])];
        if (all.length > 0) panel.overrideByName(name, all);
    }
    return panel.withTransformation(organize(labels, columns, more));
}

/** Turns the cells of a column into links. */
export function linked(panel: table.PanelBuilder, column: string, title: string, url: string): table.PanelBuilder {
    return panel.overrideByName(column, [{ id: 'links', value: [{ title, url, targetBlank: false }] }]);
}

/** Sorts by a column, highest value first. */
export function sorted(panel: table.PanelBuilder, column: string): table.PanelBuilder {
    return panel.sortBy([new common.TableSortByFieldStateBuilder().displayName(column).desc(true)]);
}

/** Colors the cells of a column by value. */
export function colored(steps: Step[]): DynamicConfigValue[] {
    return [
        { id: 'thresholds', value: thresholds(steps).build() },
        { id: 'custom.cellOptions', value: { type: 'color-text' } },
    ];
}

/** The names for the numbers of `worstDiagnosis`. */
export function rankMapping(): ValueMap {
    const options = Object.fromEntries(
        DIAGNOSES.map(({ name, color }, i) => [String(rank(i)), { text: name, color, index: i }]),
    );
    return {
        type: MappingType.ValueToText,
        options: { ...options, '0': { text: 'none', color: 'green', index: DIAGNOSES.length } },
    };
}

/** Colors each line that is named after a diagnosis. */
export function inDiagnosisColors(panel: timeseries.PanelBuilder): timeseries.PanelBuilder {
    for (const { name, color } of DIAGNOSES) {
        panel.overrideByName(name, [{ id: 'color', value: { mode: 'fixed', fixedColor: color } }]);
    }
    return panel;
}

/** Names for single values. */
export function named(...values: [value: number, text: string, color: string][]): ValueMap {
    const options = values.map(([value, text, color], index) => [String(value), { text, color, index }]);
    return { type: MappingType.ValueToText, options: Object.fromEntries(options) };
}

/** The column for `worstDiagnosis`. */
export function diagnosisColumn(expr: string): Column {
    const properties = [
        { id: 'mappings', value: [rankMapping()] },
        { id: 'custom.cellOptions', value: { type: 'color-text' } },
        { id: 'custom.align', value: 'left' },
        { id: 'custom.width', value: DIAGNOSIS_WIDTH },
    ];
    return { name: 'diagnosis', expr, properties };
}

/** The column for the cause, which maps its number to its name. */
export function causeColumn(expr: string): Column {
    const options = Object.fromEntries(CAUSES.map(({ name, number }, index) => [String(number), { text: name, color: 'text', index }]));
    const none = { text: 'not certain', color: 'text', index: CAUSES.length };
    const mapping = { type: MappingType.ValueToText, options: { ...options, '0': none } };
    const properties = [
        { id: 'mappings', value: [mapping] },
        { id: 'custom.align', value: 'left' },
        { id: 'custom.width', value: CAUSE_WIDTH },
    ];
    return { name: 'cause', expr, properties };
}

interface Dressable<T> {
    title(title: string): T;
    description(description: string): T;
    unit(unit: string): T;
    noValue(noValue: string): T;
    datasource(datasource: common.DataSourceRef): T;
}

function dress<T extends Dressable<T>>(panel: T, { title, about, unit, empty }: Words): T {
    return panel.title(title).description(about).unit(unit).noValue(empty).datasource(DATASOURCE);
}

function thresholds(steps: Step[]): Builder<ReturnType<ThresholdsConfigBuilder['build']>> & ThresholdsConfigBuilder {
    const all = [{ value: null, color: 'green' }, ...steps.map(([value, color]) => ({ value, color }))];
    return new ThresholdsConfigBuilder().mode(ThresholdsMode.Absolute).steps(all);
}

function multiTooltip(): common.VizTooltipOptionsBuilder {
    return new common.VizTooltipOptionsBuilder()
        .mode(common.TooltipDisplayMode.Multi)
        .sort(common.SortOrder.Descending);
}

function query({ name, expr }: Query, refId: string): prometheus.DataqueryBuilder {
    return new prometheus.DataqueryBuilder()
        .datasource(DATASOURCE)
        .editorMode(prometheus.QueryEditorMode.Code)
        .expr(expr)
        .legendFormat(name)
        .refId(refId);
}

function range(what: Query, refId: string): prometheus.DataqueryBuilder {
    return query(what, refId).range();
}

function instant(what: Query, refId: string): prometheus.DataqueryBuilder {
    return query(what, refId).instant();
}

function instantTable(what: Query, refId: string): prometheus.DataqueryBuilder {
    return instant(what, refId).format(prometheus.PromQueryFormat.Table);
}

function refId(i: number): string {
    return String.fromCharCode('A'.charCodeAt(0) + i);
}

/** Orders and names the columns, and hides those without a name. */
function organize(labels: string[], columns: Column[], more: string[]) {
    const field = (i: number) => (columns.length > 1 ? `Value #${refId(i)}` : 'Value');
    const shown = columns.map(({ name }, i) => ({ name, field: field(i) }));
    const hidden = shown.filter(({ name }) => name === '').map(({ field }) => field);
    const order = [...labels, ...shown.map(({ field }) => field), ...more];
    return {
        id: 'organize',
        options: {
            excludeByName: Object.fromEntries(['Time', ...hidden].map((name) => [name, true])),
            indexByName: Object.fromEntries(order.map((name, i) => [name, i])),
            renameByName: Object.fromEntries(
                shown.filter(({ name }) => name !== '').map(({ name, field }) => [field, name]),
            ),
        },
    };
}
