// Writes the JSON of each dashboard, and a copy of it that `tsc` checks against Grafana's own types.
import { mkdirSync, writeFileSync } from 'node:fs';
import { argv } from 'node:process';

import { fleet } from './fleet.js';
import { host } from './host.js';
import { listener } from './listener.js';

const out = argv[2] ?? '.';
mkdirSync('build/typed', { recursive: true });
for (const dashboard of [fleet(), listener(), host()]) {
    const json = `${JSON.stringify(dashboard, null, 2)}\n`;
    writeFileSync(`${out}/${dashboard.uid}.json`, json);
    const head = "import type { Checked } from '../../src/schema.js';\n\nexport const dashboard: Checked = ";
    writeFileSync(`build/typed/${dashboard.uid}.ts`, head + json);
}
