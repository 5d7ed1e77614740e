// The check against Grafana's own types: a dashboard may have only properties that they define.
import type * as grafana from '@grafana/schema';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as statetimeline from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

/** The JSON form of a type: an enum becomes its values. */
type Json<T> = T extends boolean | null | undefined
    ? T
    : T extends string
      ? `${T}`
      : T extends number
        ? `${T}` extends `${infer N extends number}`
            ? N
            : number
        : unknown extends T
          ? T
          : { [K in keyof T]: Json<T[K]> };

type Fields<Custom> = Omit<grafana.FieldConfigSource, 'defaults'> & {
    defaults: Omit<grafana.FieldConfig, 'custom'> & { custom?: Custom };
};

type PanelOf<Type, Options, Custom> = Omit<grafana.Panel, 'type' | 'options' | 'fieldConfig'> & {
    type: Type;
    options?: Options;
    fieldConfig?: Fields<Custom>;
};

type Known =
    | PanelOf<'stat', Partial<stat.Options>, never>
    | PanelOf<'statetimeline' | 'state-timeline', Partial<statetimeline.Options>, Partial<statetimeline.FieldConfig>>
    | PanelOf<'table', Partial<table.Options>, Partial<table.FieldConfig>>
    | PanelOf<'timeseries', Partial<timeseries.Options>, Partial<timeseries.FieldConfig>>
    | grafana.RowPanel;

/** The data source defines the queries of panels and annotations; the schema leaves only those of panels open. */
type Annotation = Omit<grafana.AnnotationQuery, 'target'> & {
    target?: Record<string, unknown>;
    expr?: string;
    titleFormat?: string;
};

/** A dashboard in Grafana's schema, with the kinds of panels that are used here. */
export type Checked = Json<
    Omit<grafana.Dashboard, 'panels' | 'annotations'> & { panels: Known[]; annotations: { list: Annotation[] } }
>;
