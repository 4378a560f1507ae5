import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { root } from '../helpers/root.js';

type Version = [number, number];
interface Toolkit {
  nvcc?: string;
  version?: Version;
  top?: string;
  missing?: string;
}

const { architectures, findCublasHeader, findToolkit } = (await import(
  pathToFileURL(join(root, 'scripts/cuda-toolkit.mjs')).href
)) as {
  architectures(version: Version, chosen?: string): string[];
  findCublasHeader(toolkit: Toolkit, env: NodeJS.ProcessEnv): string | undefined;
  findToolkit(env: NodeJS.ProcessEnv): Toolkit;
};

/** A folder with a bin/nvcc that says it is of `release`. */
function fakeToolkit(t: TestContext, release: string): string {
  const home = mkdtempSync(join(tmpdir(), 'millrace-'));
  t.after(() => rmSync(home, { recursive: true }));
  mkdirSync(join(home, 'bin'));
  mkdirSync(join(home, 'include'));
  const nvcc = join(home, 'bin/nvcc');
  const answer = `echo "Cuda compilation tools, release ${release}, V${release}.1"`;
  writeFileSync(nvcc, `#!/bin/sh\n${answer}\necho '#$ TOP=${home}' >&2\n`);
  chmodSync(nvcc, 0o755);
  return home;
}

test('A toolkit is found in CUDA_HOME or PATH, and an old one is refused by its release', (t) => {
  const home = fakeToolkit(t, '12.6');
  for (const env of [{ CUDA_HOME: home }, { PATH: `/nowhere:${home}/bin` }]) {
    const found = findToolkit(env);
    assert.deepEqual(found, { nvcc: join(home, 'bin/nvcc'), version: [12, 6], top: home });
  }
  const old = findToolkit({ CUDA_HOME: fakeToolkit(t, '12.3') });
  assert.match(old.missing ?? '', /is of CUDA 12\.3; 12\.4 or later is needed/);
});

test('Where there is no toolkit or header the build says what to install and ends with 1', (t) => {
  const run = (env: Record<string, string>) =>
    spawnSync(process.execPath, [join(root, 'scripts/build-cuda.mjs')], {
      env: { PATH: dirname(process.execPath), ...env },
      encoding: 'utf8',
    });
  const none = run({ CUDA_HOME: '/nowhere' });
  assert.equal(none.status, 1);
  assert.match(
    none.stderr,
    /CUDA_HOME \(\/nowhere\) has no bin\/nvcc\. Install the CUDA toolkit 12\.4/,
  );
  const bare = run({ CUDA_HOME: fakeToolkit(t, '13.0'), CUBLAS_INCLUDE: '/nowhere' });
  assert.equal(bare.status, 1);
  assert.match(bare.stderr, /cublasLt\.h was not found.* set CUBLAS_INCLUDE/s);
});

test('cublasLt.h is taken from the toolkit, or from where CUBLAS_INCLUDE says', (t) => {
  const [top, other] = [fakeToolkit(t, '13.0'), fakeToolkit(t, '13.0')].map((home) => {
    writeFileSync(join(home, 'include/cublasLt.h'), '');
    return home;
  });
  assert.equal(findCublasHeader({ top }, {}), join(top, 'include'));
  const chosen = join(other, 'include');
  assert.equal(findCublasHeader({ top }, { CUBLAS_INCLUDE: chosen }), chosen);
});

test('The build is for every GPU the toolkit knows and others by translation, or for those chosen', () => {
  const names = (flags: string[]) => flags.map((flag) => flag.split(',code=')[1]);
  assert.deepEqual(names(architectures([12, 4])), ['sm_80', 'sm_89', 'sm_90a', 'compute_80']);
  assert.deepEqual(names(architectures([13, 0])).slice(3), ['sm_100', 'sm_120', 'compute_80']);
  assert.deepEqual(names(architectures([13, 0], '80, 90a')), ['sm_80', 'sm_90a']);
  assert.throws(() => architectures([13, 0], 'hopper'), /for CUDA_ARCHS but received hopper/);
});
