// What the three dashboards share: variables, links, annotations and the layout of panels.
import type { Builder } from '@grafana/grafana-foundation-sdk/cog';
import {
    AnnotationQueryBuilder,
    type Dashboard,
    DashboardBuilder,
    DashboardCursorSync,
    DashboardLinkBuilder,
    DashboardLinkType,
    DatasourceVariableBuilder,
    type Panel,
    QueryVariableBuilder,
    RowBuilder,
    VariableRefresh,
    VariableSort,
} from '@grafana/grafana-foundation-sdk/dashboard';
import * as prometheus from '@grafana/grafana-foundation-sdk/prometheus';

import { DATASOURCE } from './panel.js';

/** The width of the grid. */
const WIDTH = 24;

/** A row of panels with their widths and one height. */
export interface Line {
    height: number;
    panels: [width: number, panel: Sizable][];
}

/** A section of a dashboard, with a heading. */
export interface Section {
    title: string;
    lines: Line[];
}

/** The contents of a dashboard. */
export interface Plan {
    uid: string;
    title: string;
    about: string;
    variables: QueryVariableBuilder[];
    links: DashboardLinkBuilder[];
    annotations: AnnotationQueryBuilder[];
    sections: Section[];
}

interface Sizable extends Builder<Panel> {
    height(h: number): this;
    span(w: number): this;
}

export function make(plan: Plan): Dashboard {
    const dashboard = new DashboardBuilder(plan.title)
        .uid(plan.uid)
        .description(plan.about)
        .tags(['listenq'])
        .time({ from: 'now-1h', to: 'now' })
        .refresh('1m')
        .timezone('browser')
        .tooltip(DashboardCursorSync.Crosshair)
        .withVariable(new DatasourceVariableBuilder('datasource').label('Data source').type('prometheus'))
        .withVariable(jobVariable())
        .annotations(plan.annotations)
        .links(plan.links);
    plan.variables.forEach((variable) => dashboard.withVariable(variable));
    for (const { title, lines } of plan.sections) {
        dashboard.withRow(new RowBuilder(title));
        lines.forEach((line) => addLine(dashboard, line));
    }
    return finished(dashboard.build());
}

/** A variable with one value, chosen from the values of a label. */
export function one(name: string, label: string, series: string): QueryVariableBuilder {
    return new QueryVariableBuilder(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({ query: `label_values(${series}, ${name})`, refId: name })
        .refresh(VariableRefresh.OnTimeRangeChanged)
        .sort(VariableSort.NaturalAsc);
}

/** A variable with several values, all by default; matched with `=~`. */
export function several(name: string, label: string, series: string): QueryVariableBuilder {
    return one(name, label, series).multi(true).includeAll(true).allValue('.*').current({ text: ['All'], value: ['$__all'] });
}

/** A link to another dashboard that passes these variables, and `values` from the row of a table. */
export function to(uid: string, variables: string[], values: string[] = []): string {
    const taken = ['datasource', 'job', ...variables].map((name) => `\${${name}:queryparam}`);
    const given = values.map((name) => `var-${name}=\${__data.fields.${name}:percentencode}`);
    return `/d/${uid}/${uid}?${[...taken, ...given].join('&')}`;
}

/** A link from the row of a table to its listener, with the same time range. */
export function toListener(variables: string[], values: string[]): string {
    return `${to('listenq-listener', variables, values)}&\${__url_time_range}`;
}

/** Like `to`, for the links at the top. */
export function link(title: string, uid: string, variables: string[]): DashboardLinkBuilder {
    return new DashboardLinkBuilder(title).type(DashboardLinkType.Link).icon('dashboard').url(to(uid, variables)).keepTime(true);
}

/** A link to the page that listenq serves. */
export function ownPage(): DashboardLinkBuilder {
    return new DashboardLinkBuilder('listenq on this host')
        .type(DashboardLinkType.Link)
        .icon('external link')
        .url('http://${instance}/')
        .targetBlank(true);
}

/** An annotation for the times at which a condition held. */
export function marks(name: string, expr: string, title: string, color: string): AnnotationQueryBuilder {
    const target = new prometheus.DataqueryBuilder().datasource(DATASOURCE).expr(expr).refId(name).range();
    return new AnnotationQueryBuilder()
        .name(name)
        .datasource(DATASOURCE)
        .enable(true)
        .iconColor(color)
        .titleFormat(title)
        .target(target)
        .expr(expr);
}

function jobVariable(): QueryVariableBuilder {
    return one('job', 'Job', 'listenq_build_info').current({ text: 'listenq', value: 'listenq' });
}

function addLine(dashboard: DashboardBuilder, { height, panels }: Line): void {
    const width = panels.reduce((sum, [width]) => sum + width, 0);
    if (width !== WIDTH) throw new Error(`a line is ${width} wide, not ${WIDTH}`);
    panels.forEach(([width, panel]) => dashboard.withPanel(panel.height(height).span(width)));
}

/** Numbers the panels, and removes properties of the SDK that Grafana's schema does not define. */
function finished(dashboard: Dashboard): Dashboard {
    dashboard.panels?.forEach((panel, i) => {
        panel.id = i + 1;
        if (panel.type === 'table') delete (panel as Panel).options.footer;
    });
    for (const variable of dashboard.templating.list ?? []) {
        delete variable.auto;
        delete variable.auto_min;
        delete variable.auto_count;
    }
    for (const shown of [...(dashboard.links ?? []), ...(dashboard.annotations.list ?? [])]) {
        delete shown.placement;
    }
    return dashboard;
}
