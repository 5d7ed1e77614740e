// Owns a stand-in for Grafana's scroll bars, whose package esbuild does not read as Grafana's own build does.
import React, { type ReactNode } from 'react';

export { Scrollbars };

export default function Scrollbars({ children }: { children?: ReactNode }) {
    return <div style={{ overflow: 'auto', height: '100%' }}>{children}</div>;
}
