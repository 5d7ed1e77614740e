// The page: a dashboard on its grid; Grafana's own components draw each panel.
import {
    applyFieldOverrides,
    createTheme,
    type DataFrame,
    dateTime,
    type FieldConfigPropertyItem,
    getFieldDisplayName,
    identityOverrideProcessor,
    reduceField,
    Registry,
    standardTransformers,
    standardTransformersRegistry,
    ThemeContext,
    transformDataFrame,
} from '@grafana/data';
import { BigValue, BigValueColorMode, BigValueGraphMode, BigValueTextMode, GlobalStyles, PanelChrome, PortalContainer, Table, TimeSeries } from '@grafana/ui';
import React, { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { firstValueFrom } from 'rxjs';

import { ask, fill, type Look } from './data';

declare const PREVIEW: { dashboard: any; look: Look; dark: boolean };

const CELL = { width: 1600 / 24, height: 38 };
const theme = createTheme({ colors: { mode: PREVIEW.dark ? 'dark' : 'light' } });
let waiting = 0;

standardTransformersRegistry.setInit(() =>
    [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map((transformation: any) => ({
        id: transformation.id,
        name: transformation.name,
        transformation,
        editor: () => null,
    })),
);

/** Every property that an override of these dashboards may set. */
function properties(): Registry<FieldConfigPropertyItem> {
    const standard = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'thresholds', 'mappings', 'links', 'color'];
    const custom = ['lineStyle', 'fillOpacity', 'axisPlacement', 'cellOptions', 'hideFrom', 'width', 'align', 'axisSoftMax'];
    const item = (path: string, isCustom: boolean): any => ({
        id: isCustom ? `custom.${path}` : path,
        path,
        name: path,
        isCustom,
        process: identityOverrideProcessor,
        shouldApply: () => true,
        override: () => null,
        editor: () => null,
    });
    return new Registry(() => [...standard.map((p) => item(p, false)), ...custom.map((p) => item(p, true))]);
}

async function load(panel: any): Promise<DataFrame[]> {
    const several = panel.targets.length > 1;
    const answers = await Promise.all(panel.targets.map((target: any) => ask(target, PREVIEW.look, several)));
    const frames = await firstValueFrom(transformDataFrame(panel.transformations ?? [], answers.flat()));
    return applyFieldOverrides({
        data: frames,
        fieldConfig: panel.fieldConfig,
        fieldConfigRegistry: properties(),
        replaceVariables: (text) => fill(text, PREVIEW.look),
        theme,
        timeZone: 'utc',
    });
}

function Panel({ panel }: { panel: any }) {
    const [frames, setFrames] = useState<DataFrame[] | string>();
    useEffect(() => {
        waiting += 1;
        load(panel)
            .then(setFrames, (error: Error) => setFrames(`ERROR ${error.message}`))
            .finally(() => (waiting -= 1));
    }, []);
    const { x, y, w, h } = panel.gridPos;
    const place = { position: 'absolute', left: x * CELL.width, top: y * CELL.height } as const;
    const size = { width: w * CELL.width - 8, height: h * CELL.height - 8 };
    return (
        <div style={place}>
            <PanelChrome title={panel.title} description={panel.description} {...size}>
                {(width, height) => <Body panel={panel} frames={frames} width={width} height={height} />}
            </PanelChrome>
        </div>
    );
}

function Body({ panel, frames, width, height }: { panel: any; frames?: DataFrame[] | string; width: number; height: number }) {
    if (frames === undefined) return <>…</>;
    if (typeof frames === 'string') return <pre>{frames}</pre>;
    if (!frames.some((frame) => frame.length > 0)) {
        return <div style={{ padding: 8, textAlign: 'center', color: theme.colors.text.secondary }}>{panel.fieldConfig.defaults.noValue}</div>;
    }
    if (panel.type === 'stat') return <Stat panel={panel} frame={frames[0]!} width={width} height={height} />;
    if (panel.type === 'table') {
        return <Table data={frames[0]!} width={width} height={height} initialSortBy={panel.options.sortBy} />;
    }
    if (panel.type === 'state-timeline') return <Bands frames={frames} width={width} height={height} />;
    return <Lines panel={panel} frames={frames} width={width} height={height} />;
}

function Stat({ frame, width, height }: { panel: any; frame: DataFrame; width: number; height: number }) {
    const field = frame.fields.find(({ type }) => type === 'number')!;
    const last = reduceField({ field, reducers: ['lastNotNull'] })['lastNotNull'];
    return (
        <BigValue
            width={width}
            height={height}
            theme={theme}
            value={field.display!(last)}
            colorMode={BigValueColorMode.Value}
            graphMode={BigValueGraphMode.None}
            textMode={BigValueTextMode.Value}
        />
    );
}

function Lines({ panel, frames, width, height }: { panel: any; frames: DataFrame[]; width: number; height: number }) {
    const { from, to } = PREVIEW.look;
    const range = { from: dateTime(from * 1000), to: dateTime(to * 1000) };
    return (
        <TimeSeries
            frames={frames}
            width={width}
            height={height}
            timeRange={{ ...range, raw: range }}
            timeZone="utc"
            legend={panel.options.legend}
            structureRev={1}
        />
    );
}

/** A sketch of Grafana's state timeline, which Grafana does not publish: only its colors and its order. */
function Bands({ frames, width, height }: { frames: DataFrame[]; width: number; height: number }) {
    const { from, to } = PREVIEW.look;
    const label = Math.min(300, width / 2);
    const row = Math.min(24, Math.floor(height / frames.length));
    const scale = (width - label) / (to - from);
    return (
        <div>
            {frames.map((frame, i) => {
                const [time, value] = frame.fields;
                return (
                    <div key={i} style={{ position: 'relative', height: row, lineHeight: `${row}px`, fontSize: Math.min(14, row - 4) }}>
                        <span>{getFieldDisplayName(value!, frame, frames)}</span>
                        {time!.values.map((at: number, n: number) => {
                            if (value!.values[n] === null) return null;
                            const { color, text } = value!.display!(value!.values[n]);
                            const left = label + (at / 1000 - from) * scale;
                            return <span key={n} title={text} style={{ position: 'absolute', left, width: 9, height: row - 4, background: color }} />;
                        })}
                    </div>
                );
            })}
        </div>
    );
}

/** The values of the variables that Grafana shows at the top. */
function Variables() {
    const shown = PREVIEW.dashboard.templating.list.filter(({ hide }: any) => !hide);
    const value = (name: string) => PREVIEW.look.variables[name]?.replace(/^\.\*$/, 'All') || '–';
    return (
        <div style={{ color: theme.colors.text.secondary, height: 30 }}>
            {shown.map(({ name, label }: any) => (
                <span key={name} style={{ marginRight: 24 }}>
                    {label}: <b>{value(name)}</b>
                </span>
            ))}
        </div>
    );
}

function Page() {
    const { panels, title } = PREVIEW.dashboard;
    const bottom = Math.max(...panels.map(({ gridPos }: any) => gridPos.y + gridPos.h)) * CELL.height;
    return (
        <ThemeContext.Provider value={theme}>
            <GlobalStyles />
            <PortalContainer />
            <div style={{ background: theme.colors.background.canvas, padding: 8, width: 1616 }}>
                <h3>{title}</h3>
                <Variables />
                <div style={{ position: 'relative', height: bottom }}>
                    {panels.map((panel: any) =>
                        panel.type === 'row' ? (
                            <h5 key={panel.id} style={{ position: 'absolute', top: panel.gridPos.y * CELL.height + 12 }}>
                                {panel.collapsed ? '›' : '⌄'} {panel.title}
                            </h5>
                        ) : (
                            <Panel key={panel.id} panel={panel} />
                        ),
                    )}
                </div>
            </div>
        </ThemeContext.Provider>
    );
}

createRoot(document.getElementById('page')!).render(<Page />);
const poll = setInterval(() => {
    if (waiting > 0) return;
    clearInterval(poll);
    setTimeout(() => (document.title = 'done'), 1500);
}, 500);
