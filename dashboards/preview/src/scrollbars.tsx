// Replaces Grafana's scroll bars, whose package esbuild cannot bundle like Grafana's own build.
import React, { type ReactNode } from 'react';

export { Scrollbars };

export default function Scrollbars({ children }: { children?: ReactNode }) {
    return <div style={{ overflow: 'auto', height: '100%' }}>{children}</div>;
}
