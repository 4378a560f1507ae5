// Compiles native/ into build/millrace.node with g++ alone: no generator, no fetched headers.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { buildTargets, linked, object, root } from './incremental-build.mjs';

const cxx = process.env.CXX ?? 'g++';

// Each instruction set has one translation unit of its own; everything else stays portable.
const ISA_FLAGS = {
  'isa_avx2.cpp': ['-mavx2', '-mfma', '-mf16c'],
  'isa_avx512.cpp': ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma', '-mf16c'],
  'isa_avx512bf16.cpp': [
    ...['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mavx512bf16'],
    ...['-mavx512vnni', '-mfma', '-mf16c'],
  ],
};

/** Builds what is out of date; throws nothing: a failure is printed and ends the process with 1. */
export async function buildNative() {
  const objects = sources().map((source) => object(source, compileCommand(source)));
  const mac = process.platform === 'darwin' ? ['-undefined', 'dynamic_lookup'] : [];
  const addon = linked('millrace.node', objects, (files, output) => [
    ...[cxx, '-shared', '-pthread', ...mac, ...files, '-o', output],
  ]);
  await buildTargets({ what: 'native code', targets: [addon], prepare: requireCompiler });
}

function sources() {
  const x86 = process.arch === 'x64';
  return ['native', 'native/cpu']
    .flatMap((dir) => readdirSync(join(root, dir)).map((name) => join(dir, name)))
    .filter((path) => path.endsWith('.cpp') && !path.endsWith('_cuda.cpp'))
    .filter((path) => x86 || !Object.keys(ISA_FLAGS).some((name) => path.endsWith(name)))
    .sort();
}

function compileCommand(source) {
  return [
    ...[cxx, '-std=c++17', '-O3', '-fPIC', '-pthread', '-fvisibility=hidden', '-fno-math-errno'],
    ...['-Wall', '-Wextra', '-Wno-unused-parameter', '-Wno-ignored-attributes', '-Wno-psabi'],
    '-Wno-maybe-uninitialized', // GCC 12's AVX-512 headers set it off
    `-I${nodeHeaders()}`,
    ...(ISA_FLAGS[source.split(/[\\/]/).at(-1)] ?? []),
    ...flagsFromEnvironment(),
    ...['-c', source],
  ];
}

function requireCompiler() {
  if (spawnSync(cxx, ['--version']).status === 0) return;
  console.error(
    `millrace: the C++ compiler "${cxx}" was not found. Install g++ 10 or later: ` +
      '`apt-get install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora), ' +
      '`apk add g++` (Alpine), `xcode-select --install` (macOS), or set CXX to another compiler.',
  );
  process.exit(1);
}

/** Relative to the root, where the compiler runs. */
export function nodeHeaders() {
  const require = createRequire(import.meta.url);
  return relative(root, join(dirname(require.resolve('node-api-headers')), 'include'));
}

function flagsFromEnvironment() {
  return (process.env.CXXFLAGS ?? '').split(/\s+/).filter((flag) => flag !== '');
}
