/**
 * Builds the C++ checks of the kernels (test/native/*.cpp) for every instruction set this machine
 * has and runs them: attention, cache writes and the sampler against plain versions.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../../..', import.meta.url));

const AVX512 = '-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c'.split(' ');
const ISAS: Readonly<Record<string, readonly string[]>> = {
  portable: [],
  avx2: ['-mavx2', '-mfma', '-mf16c'],
  avx512: AVX512,
  avx512bf16: [...AVX512, '-mavx512bf16', '-mavx512vnni'],
};
// Left out is what the address sanitizer sees as well, and alignment, which x86 loads do not need.
const SANITIZED = [
  ...['-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'],
  '-fno-sanitize=null,alignment,object-size,vptr',
];
// Where instructions are two or four registers wide, GCC needs minutes to instrument them.
const MAY_SANITIZE = ['avx512bf16', 'avx512'];
const SOURCES = ['attention-check', 'sample-check', 'vec-check'];
const SEED = 20240607;

// One compiler for each core, whatever the tests ask for at once.
let free = availableParallelism();
const waiting: (() => void)[] = [];
async function compile(args: readonly string[]): Promise<void> {
  if (free > 0) free--;
  else await new Promise<void>((go) => waiting.push(go));
  try {
    await run('g++', ['-std=c++17', '-pthread', '-Wall', '-Wextra', '-Werror', ...args], {
      cwd: root,
    });
  } finally {
    const next = waiting.shift();
    if (next) next();
    else free++;
  }
}

describe('the kernels of every instruction set', { concurrency: true }, () => {
  let folder = '';
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'millrace-kernels-'));
  });
  after(() => rm(folder, { recursive: true }));

  const built = new Map<string, Promise<string>>();
  /** Compiles one source with `flags`, once for each `name`, and returns the object's path. */
  function object(name: string, source: string, flags: readonly string[]): Promise<string> {
    const path = join(folder, `${name}.o`);
    const compiling =
      built.get(path) ?? compile([...flags, '-c', source, '-o', path]).then(() => path);
    built.set(path, compiling);
    return compiling;
  }

  /** Builds the check of an instruction set and returns its path. */
  async function build(isa: string, kind: string, options: readonly string[]): Promise<string> {
    // GCC 12's own AVX-512 headers set off the two warnings about uninitialized values.
    const quiet = ['-Wno-uninitialized', '-Wno-maybe-uninitialized'];
    const flags = [...ISAS[isa], ...options, ...quiet, `-DMILLRACE_ISA=${isa}`];
    const objects = await Promise.all([
      ...SOURCES.map((name) => object(`${name}-${isa}-${kind}`, `test/native/${name}.cpp`, flags)),
      // These hold nothing of the instruction set.
      object(`check-${kind}`, 'test/native/check.cpp', options),
      object(`features-${kind}`, 'native/cpu/cpu_features.cpp', options),
      object(`attention-${kind}`, 'native/cpu/attention.cpp', options),
    ]);
    const program = join(folder, `check-${isa}-${kind}`);
    await compile([...options, ...objects, '-o', program]);
    return program;
  }

  async function check(program: string, isa: string, rounds: number): Promise<string> {
    const { stdout } = await run(program, [isa, String(SEED), String(rounds)]).catch(
      (failure: { stdout: string; stderr: string; message: string }) => {
        assert.fail(`${failure.message}\n${failure.stdout}${failure.stderr}`);
      },
    );
    return stdout;
  }

  let probe: Promise<string> | undefined;
  /** Whether this machine has the instruction set, as the check program says. */
  async function has(isa: string): Promise<boolean> {
    probe ??= (async () => {
      const program = join(folder, 'probe');
      const sources = ['test/native/check.cpp', 'native/cpu/cpu_features.cpp'];
      await compile(['-DPROBE_ONLY', ...sources, '-o', program]);
      return program;
    })();
    const { stdout } = await run(await probe, ['list']);
    return stdout.split('\n').includes(isa);
  }

  for (const isa of Object.keys(ISAS)) {
    it(`agree with plain versions on ${isa}`, async (t) => {
      if (!(await has(isa))) return t.skip(`this machine has no ${isa}`);
      const output = await check(await build(isa, 'optimised', ['-O2']), isa, 40);
      assert.match(output, /^[1-9]\d+ checks, 0 failures$/m);
    });
  }

  it('touch no memory that is not theirs and rely on nothing undefined', async (t) => {
    const supported = await Promise.all(MAY_SANITIZE.map(has));
    const isa = MAY_SANITIZE.find((_, i) => supported[i]);
    if (isa === undefined) return t.skip('needs AVX-512');
    const output = await check(await build(isa, 'sanitized', SANITIZED), isa, 20);
    assert.match(output, /^[1-9]\d+ checks, 0 failures$/m);
  });
});
