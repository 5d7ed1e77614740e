// Checks objects for the prometheus-operator against its schemas, and writes them as TypeScript for `tsc` to find
// fields that its types have not: the schemas let those pass.
// Arguments: the JSON array of objects, the file to write.
import { readFileSync, writeFileSync } from "node:fs";
import * as models from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const [from, to] = process.argv.slice(2);
const objects = JSON.parse(readFileSync(from, "utf8"));
const kinds = [...new Set(objects.map((object) => object.kind))].sort();
if (kinds.join() !== "PodMonitor,PrometheusRule,ServiceMonitor") {
  throw new Error(`unexpected kinds: ${kinds}`);
}
for (const object of objects) {
  new models[object.kind](object).validate();
}
const types = kinds.map((kind) => `I${kind}`).join(", ");
const lines = objects.map((object) => `[${JSON.stringify(object)}] satisfies [I${object.kind}];`);
writeFileSync(
  to,
  `import type { ${types} } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";\n${lines.join("\n")}\n`,
);
console.log(`${objects.length} objects for the prometheus-operator`);
