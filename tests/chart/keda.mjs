// Validates an object against the schema of KEDA: node keda.mjs FILE
import { readFileSync } from 'node:fs';
import { ScaledObject } from '@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject';

const made = JSON.parse(readFileSync(process.argv[2], 'utf8'));
new ScaledObject(made).validate();
const wrong = new ScaledObject({ ...made, spec: { ...made.spec, triggers: [{ type: 'prometheus' }] } });
try {
    wrong.validate();
} catch {
    process.exit(0);
}
throw new Error('a trigger without metadata was valid');
