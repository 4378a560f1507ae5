#!/usr/bin/env node
// Builds what is missing or out of date. `build.mjs ts`, `build.mjs native`, or both without an argument.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const what = process.argv[2] ?? 'all';

if (what === 'ts' || what === 'all') buildTypeScript();
if (what === 'native' || what === 'all') {
  const { buildNative } = await import('./build-native.mjs');
  await buildNative();
}

function buildTypeScript() {
  const tsc = `${root}node_modules/typescript/bin/tsc`;
  if (!existsSync(tsc)) {
    // Installed from the registry: dist/ came with the package and the compiler did not.
    if (existsSync(`${root}dist/src/index.js`)) return;
    console.error(
      'millrace: dist/ and the TypeScript compiler are both missing; run `npm ci` first.',
    );
    process.exit(1);
  }
  const { status } = spawnSync(process.execPath, [tsc, '-p', root], {
    stdio: 'inherit',
    cwd: root,
  });
  if (status !== 0) process.exit(status ?? 1);
}
