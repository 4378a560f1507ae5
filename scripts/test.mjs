#!/usr/bin/env node
// Runs the compiled test files (all, or those whose path contains one of the arguments) and ends
// with the line `N passed, N failed`. Exit code 1 if anything failed or nothing ran. `--gpu` runs
// those that need a GPU instead: test/cuda/*.gpu.ts.
import { readdirSync } from 'node:fs';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const gpu = process.argv[2] === '--gpu';
const ending = gpu ? '.gpu.js' : '.test.js';
const wanted = process.argv.slice(gpu ? 3 : 2);
const files = readdirSync(`${root}dist/test`, { recursive: true })
  .filter((file) => file.endsWith(ending))
  .filter((file) => wanted.length === 0 || wanted.some((part) => file.includes(part)))
  .sort()
  .map((file) => `${root}dist/test/${file}`);

let passed = 0;
let failed = 0;
let skipped = 0;
const isFile = (event) => event.name.endsWith(ending);
const FILE_TIMEOUT_MS = gpu ? 80_000 : 240_000;
const stream = run({ files, concurrency: gpu ? 3 : 2, timeout: FILE_TIMEOUT_MS });
// A file that hangs is killed, and its own report dies with it: who began and never ended is known here.
const open = new Map();
const key = ({ file, line, column, nesting, name }) => [file, line, column, nesting, name].join();
stream.on('test:dequeue', (event) => open.set(key(event), event));
for (const end of ['test:pass', 'test:fail']) {
  stream.on(end, (event) => {
    open.delete(key(event));
    if (!isFile(event)) return;
    for (const [id, { file, name }] of open) {
      if (file !== event.name && file !== event.file) continue;
      console.log(`HANGS: "${name}" in ${file} had not ended when the file did`);
      open.delete(id);
    }
  });
}
stream.on('test:pass', (event) => {
  if (event.details.type === 'suite' || isFile(event)) return;
  if (event.skip !== undefined || event.todo !== undefined) skipped++;
  else passed++;
});
stream.on('test:fail', (event) => {
  if (event.details.type !== 'suite') failed++;
});

const report = stream.compose(new spec());
report.pipe(process.stdout);
report.on('end', () => {
  console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
  process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
});
