#!/usr/bin/env node
// Compiles native/cuda into build/millrace-cuda.node, and with --checks the kernels' own check
// programs (test/cuda/check_*.cu) into build/cuda-checks. With --kernels nothing but *.cu, which takes
// no cublasLt.h: whether they compile. Needs the CUDA toolkit, no GPU.
import { existsSync, readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { nodeHeaders } from './build-native.mjs';
import { architectures, CUBLAS_ADVICE, findCublasHeader, findToolkit } from './cuda-toolkit.mjs';
import { buildTargets, linked, object, root } from './incremental-build.mjs';

const args = process.argv.slice(2);
const unknown = args.find((arg) => !['--checks', '--kernels'].includes(arg));
if (unknown !== undefined) stop(`Unknown argument ${unknown}; there are --checks and --kernels.`);
const kernelsOnly = args.includes('--kernels');

const toolkit = findToolkit();
if (toolkit.missing) stop(toolkit.missing);
const cublas = findCublasHeader(toolkit);
if (!cublas && !kernelsOnly) stop(CUBLAS_ADVICE);
const codes = archs();

// Where things are stays out of the commands, so that build/ is current on another machine, too.
// Folders of CPATH are searched last: a Python package may have headers of another version.
process.env.PATH = `${dirname(toolkit.nvcc)}${delimiter}${process.env.PATH}`;
if (cublas) process.env.CPATH = cublas;
const nvcc = 'nvcc';
const common = [
  ...[nvcc, '-std=c++17', '-O3', '-Xcompiler=-fPIC,-fvisibility=hidden'],
  ...['-Inative', '-Inative/cuda', `-I${nodeHeaders()}`],
  // Objects of two toolkits are not linked together.
  `-DMILLRACE_CUDA_TOOLKIT=${toolkit.version.join('')}`,
];
const kernels = ['-lineinfo', '--expt-relaxed-constexpr', ...codes];

const sources = ['native', 'native/cuda']
  .flatMap((folder) => files(folder))
  .filter((path) => path.endsWith('.cu') || /(cuda\b.*|^native\/batch)\.cpp$/.test(path));
const objects = sources.map(compiled);
const addon = linked('millrace-cuda.node', objects, (inputs, output) => [
  ...[nvcc, '-shared', '-cudart=static', ...codes, ...inputs, '-o', output, '-ldl', '-lpthread'],
]);
// What a check does not call is left out of it, so the executor need not link without Node.
const archive = (inputs, output) => ['ar', 'rcs', output, ...inputs];
const library = linked('cuda/all.a', objects, archive);
const kernelLibrary = linked(
  'cuda/kernels.a',
  objects.filter(({ source }) => source.endsWith('.cu')),
  archive,
);
const checks = files('test/cuda')
  .filter((path) => /\/check_[a-z]+\.cu$/.test(path))
  .map((path) => {
    const name = `cuda-checks/${path.split('/').at(-1).replace('.cu', '')}`;
    const parts = [compiled(path), ...library.objects];
    return linked(name, parts, ([own], output) => [
      ...[nvcc, '-cudart=static', ...codes, own, library.output, '-o', output, '-ldl', '-lpthread'],
    ]);
  });

await buildTargets({
  what: `CUDA code (${codes.map((code) => code.split(',code=')[1]).join(', ')})`,
  targets: kernelsOnly
    ? [kernelLibrary]
    : [addon, ...(args.includes('--checks') ? [library, ...checks] : [])],
  prepare: () => {},
  // Few files on many cores: the GPUs of one file side by side.
  extra: (stale) => [`--threads=${Math.max(1, Math.floor(availableParallelism() / stale.length))}`],
  verbose: true,
});

function compiled(source) {
  const own = source.endsWith('.cu') ? kernels : [];
  return object(source, [...common, ...own, '-c', source], 'cuda');
}

function files(folder) {
  const path = join(root, folder);
  if (!existsSync(path)) return [];
  return readdirSync(path)
    .sort()
    .map((name) => `${folder}/${name}`);
}

function archs() {
  try {
    return architectures(toolkit.version, process.env.CUDA_ARCHS);
  } catch (error) {
    return stop(error.message);
  }
}

function stop(message) {
  console.error(`millrace: the CUDA code cannot be built: ${message}`);
  process.exit(1);
}
