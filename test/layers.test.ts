import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { test } from 'node:test';
import { root } from './helpers/root.js';

/**
 * What each folder of src/ may import besides itself and errors.ts. Imports go downhill:
 * cli -> server, bench, tune -> flags -> engine -> backend, model; the tokenizer stands beside the
 * model.
 */
const MAY_IMPORT: Record<string, string[]> = {
  'errors.ts': [],
  'nearest.ts': [],
  'index.ts': ['llm.ts', 'engine', 'tokenizer', 'model', 'server'],
  'llm.ts': ['engine', 'tokenizer', 'model'],
  // One parser and one table of the engine's flags, for every command.
  flags: ['engine', 'backend', 'nearest.ts'],
  // GGUF files bring config, weights and tokenizer at once: gguf and model use each other's types.
  model: ['gguf'],
  gguf: ['model'],
  tokenizer: ['gguf'],
  backend: ['model'],
  engine: ['backend', 'model', 'nearest.ts'],
  server: ['engine', 'tokenizer', 'model'],
  bench: ['flags', 'engine', 'tokenizer', 'model', 'backend'],
  tune: ['engine', 'tokenizer', 'model', 'backend'],
  // Making and judging quantized models: above the executors, beside the benchmark.
  quant: ['bench', 'tokenizer', 'model', 'backend'],
  cli: [
    ...['server', 'bench', 'tune', 'quant', 'flags', 'engine', 'tokenizer', 'backend', 'model'],
    ...['llm.ts', 'nearest.ts'],
  ],
};

const src = join(root, 'src');
const sources = readdirSync(src, { recursive: true, encoding: 'utf8' }).filter((file) =>
  file.endsWith('.ts'),
);

test('Every import in src goes downhill through the layers', () => {
  const uphill: string[] = [];
  for (const file of sources) {
    const from = file.split('/')[0];
    assert.ok(from in MAY_IMPORT, `src/${from} is not in the list of layers`);
    for (const target of relativeImports(file)) {
      const to = relative(src, target).split('/')[0];
      if (to !== from && to !== 'errors.ts' && !MAY_IMPORT[from].includes(to)) {
        uphill.push(`${file} imports ${to}`);
      }
    }
  }
  assert.deepEqual(uphill, []);
  assert.ok(sources.length > 20, 'the check found the sources');
});

test('Only backend/cpu and backend/cuda load native code', () => {
  const loaders = sources.filter((file) =>
    /process\.dlopen|createRequire|\.node['"`]/.test(readFileSync(join(src, file), 'utf8')),
  );
  const outside = loaders.filter((file) => !/^backend\/(cpu|cuda)\//.test(file));
  assert.deepEqual(outside, []);
});

function relativeImports(file: string): string[] {
  const text = readFileSync(join(src, file), 'utf8');
  const found = text.matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)'/g);
  return [...found].map(([, path]) => join(src, dirname(file), path.replace(/\.js$/, '.ts')));
}
