// The parts that all three dashboards share: variables, links, annotations and the layout of panels.
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
    type RowPanel,
    QueryVariableBuilder,
    RowBuilder,
    TextBoxVariableBuilder,
    VariableHide,
    type VariableModel,
    VariableRefresh,
    VariableSort,
} from '@grafana/grafana-foundation-sdk/dashboard';
import * as prometheus from '@grafana/grafana-foundation-sdk/prometheus';

import { DATASOURCE } from './panel.js';
import { CLUSTERS, hostOfInstance } from './query.js';

/** The width of the grid. */
const WIDTH = 24;

/** A row of panels with their widths and one height. */
export interface Line {
    height: number;
    panels: [width: number, panel: Sizable][];
}

/** A section of a dashboard, with a heading. Grafana loads a collapsed section when a user opens it. */
export interface Section {
    title: string;
    collapsed?: boolean;
    lines: Line[];
}

/** The contents of a dashboard. */
export interface Plan {
    uid: string;
    title: string;
    about: string;
    variables: Variable[];
    links: DashboardLinkBuilder[];
    annotations: AnnotationQueryBuilder[];
    sections: Section[];
}

type Variable = Builder<VariableModel>;

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
        .withVariable(plan.uid === 'listenq-fleet' ? clusters() : oneCluster())
        .annotations(plan.annotations)
        .links(plan.links);
    plan.variables.forEach((variable) => dashboard.withVariable(variable));
    plan.sections.forEach((section) => addSection(dashboard, section));
    return finished(dashboard.build());
}

/** A variable with one value, chosen from the values of the label with the name of the variable. */
export function one(name: string, label: string, series: string): QueryVariableBuilder {
    return queried(name, label, `label_values(${series}, ${name})`);
}

function queried(name: string, label: string, query: string): QueryVariableBuilder {
    return new QueryVariableBuilder(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({ query, refId: name })
        .refresh(VariableRefresh.OnTimeRangeChanged)
        .sort(VariableSort.NaturalAsc);
}

/** A variable with several values, all by default; matched with `=~`. */
export function several(name: string, label: string, series: string): QueryVariableBuilder {
    return one(name, label, series).multi(true).includeAll(true).allValue('.*').current({ text: ['All'], value: ['$__all'] });
}

/** The variable `instance` of the dashboards Listener and Host. */
export function instance(): QueryVariableBuilder {
    return one('instance', 'Instance', `listenq_build_info{${CLUSTERS}}`);
}

/** A hidden variable: the uid of a dashboard that listenq does not ship. */
export function foreign(name: string, uid: string): TextBoxVariableBuilder {
    return new TextBoxVariableBuilder(name).defaultValue(uid).current({ text: uid, value: uid }).hide(VariableHide.HideVariable);
}

/** The uid of "Kubernetes / Compute Resources / Pod" of the Kubernetes mixin. */
export function podDashboard(): TextBoxVariableBuilder {
    return foreign('pod_dashboard', '6581e46e4e5c7ba40a07646395ef7b23');
}

/** The variables of the link to the node's dashboard: the uid of "Node Exporter / Nodes", and the host of the instance. */
export function node(): Variable[] {
    const host = queried('host', 'Host', `query_result(${hostOfInstance()})`).regex('/\\bhost="([^"]*)"/');
    return [foreign('node_dashboard', '7d57716318ee0dddbac5a7f451fb7753'), host.hide(VariableHide.HideVariable)];
}

/** A link to the dashboard of the node. */
export function nodeLink(): DashboardLinkBuilder {
    const url = '/d/${node_dashboard}/node?${datasource:queryparam}&${cluster:queryparam}&var-instance=${host}:9100';
    return new DashboardLinkBuilder('Node').type(DashboardLinkType.Link).icon('external link').url(url).keepTime(true);
}

/** A link from the row of a table to the dashboard of the pod. */
export function toPod(): string {
    const values = [['cluster', 'cluster'], ['namespace', 'k8s_namespace'], ['pod', 'k8s_pod']];
    const given = values.map(([name, label]) => `var-${name}=\${__data.fields.${label}:percentencode}`);
    return `/d/\${pod_dashboard}/pod?\${datasource:queryparam}&${given.join('&')}&\${__url_time_range}`;
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

/** Like `to`, for the links at the top of a dashboard. */
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

/** All clusters by default. Series without the label `cluster` belong to "All" too, and "None" selects only them. */
function clusters(): QueryVariableBuilder {
    return several('cluster', 'Cluster', 'listenq_build_info{job="$job"}')
        .staticOptions([{ text: 'None', value: '' }])
        .staticOptionsOrder('after');
}

/** One cluster, or all of them. */
function oneCluster(): QueryVariableBuilder {
    return clusters().multi(false).current({ text: 'All', value: '$__all' });
}

function addSection(dashboard: DashboardBuilder, { title, collapsed, lines }: Section): void {
    const row = new RowBuilder(title);
    const panels = lines.flatMap(sized);
    if (collapsed) {
        panels.forEach((panel) => row.withPanel(panel));
        dashboard.withRow(row.collapsed(true));
    } else {
        dashboard.withRow(row);
        panels.forEach((panel) => dashboard.withPanel(panel));
    }
}

function sized({ height, panels }: Line): Sizable[] {
    const width = panels.reduce((sum, [width]) => sum + width, 0);
    if (width !== WIDTH) throw new Error(`a line is ${width} wide, not ${WIDTH}`);
    return panels.map(([width, panel]) => panel.height(height).span(width));
}

/** Numbers the panels, and removes properties of the SDK that Grafana's schema does not define. */
function finished(dashboard: Dashboard): Dashboard {
    const inRow = (panel: Panel | RowPanel) => ('panels' in panel ? panel.panels : []);
    const all = (dashboard.panels ?? []).flatMap((panel) => [panel, ...inRow(panel)]);
    all.forEach((panel, i) => {
        panel.id = i + 1;
        if (panel.type === 'table') delete (panel as Panel).options.footer;
    });
    belowCollapsed(dashboard.panels ?? []);
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

/** A collapsed row takes one line: moves what follows it up by the height of its panels. */
function belowCollapsed(panels: (Panel | RowPanel)[]): void {
    let hidden = 0;
    for (const panel of panels) {
        if (!panel.gridPos) continue;
        panel.gridPos.y -= hidden;
        const inside = 'panels' in panel ? panel.panels : [];
        const bottoms = inside.map(({ gridPos }) => (gridPos ? (gridPos.y -= hidden) + gridPos.h : 0));
        hidden += Math.max(0, ...bottoms.map((bottom) => bottom - (panel.gridPos?.y ?? 0) - 1));
    }
}
