// Compiles native/ into build/millrace.node with g++ alone: no generator, no fetched headers.
// An object is rebuilt when its command or the content of any file it included has changed.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const build = join(root, 'build');
const output = join(build, 'millrace.node');
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
  const objects = sources().map((source) => object(source));
  const stale = objects.filter((each) => !isCurrent(each));
  const linkStamp = `${output}.stamp`;
  const linked = existsSync(output) && readOr(linkStamp) === stampOfAll(objects);
  if (stale.length === 0 && linked) return;

  requireCompiler();
  mkdirSync(build, { recursive: true });
  const start = performance.now();
  console.error(`millrace: compiling native code: ${stale.length} files…`);
  const queue = [...stale];
  const workers = Array.from({ length: Math.max(1, availableParallelism()) }, async () => {
    for (let next = queue.shift(); next; next = queue.shift()) await compile(next);
  });
  await Promise.all(workers);
  await link(objects);
  writeFileSync(linkStamp, stampOfAll(objects));
  console.error(
    `millrace: native code ready in ${((performance.now() - start) / 1e3).toFixed(1)} s`,
  );
}

function sources() {
  const x86 = process.arch === 'x64';
  return ['native', 'native/cpu']
    .flatMap((dir) => readdirSync(join(root, dir)).map((name) => join(dir, name)))
    .filter((path) => path.endsWith('.cpp'))
    .filter((path) => x86 || !Object.keys(ISA_FLAGS).some((name) => path.endsWith(name)))
    .sort();
}

function object(source) {
  const name = source.replaceAll(/[\\/]/g, '-').replace(/\.cpp$/, '');
  const path = join(build, `${name}.o`);
  const command = [
    ...['-std=c++17', '-O3', '-fPIC', '-pthread', '-fvisibility=hidden', '-fno-math-errno'],
    ...['-Wall', '-Wextra', '-Wno-unused-parameter', '-Wno-ignored-attributes', '-Wno-psabi'],
    '-Wno-maybe-uninitialized', // GCC 12's AVX-512 headers set it off
    `-I${nodeHeaders()}`,
    ...(ISA_FLAGS[source.split(/[\\/]/).at(-1)] ?? []),
    ...flagsFromEnvironment(),
    ...['-c', source],
  ];
  return { source, path, stamp: `${path}.stamp`, command: [cxx, ...command] };
}

/** The stamp holds the hash of command and inputs, then the inputs, one a line. */
function isCurrent({ path, stamp, command }) {
  if (!existsSync(path)) return false;
  const [known, ...inputs] = (readOr(stamp) ?? '').split('\n');
  return known === inputHash(command, inputs);
}

function stampOfAll(objects) {
  return hash(objects.map(({ path, stamp }) => `${path} ${readOr(stamp)}`).join('\n'));
}

function inputHash(command, inputs) {
  return hash([command.join(' '), ...inputs.map((path) => readOr(join(root, path)))].join('\0'));
}

async function compile({ source, path, stamp, command }) {
  // Other processes may build or load at the same time: finished files appear by renaming.
  const temporary = `${path}.${process.pid}`;
  const dependencies = `${temporary}.d`;
  await run([...command, '-MMD', '-MF', dependencies, '-o', temporary], source);
  const inputs = readFileSync(dependencies, 'utf8')
    .replace(/^[^:]*:/, '')
    .split(/[\s\\]+/)
    .filter((name) => name !== '')
    .filter((name) => name.startsWith('native'));
  rmSync(dependencies);
  writeFileSync(stamp, [inputHash(command, inputs), ...inputs].join('\n'));
  renameSync(temporary, path);
}

async function link(objects) {
  const temporary = `${output}.${process.pid}`;
  const mac = process.platform === 'darwin' ? ['-undefined', 'dynamic_lookup'] : [];
  const files = objects.map(({ path }) => path);
  await run([cxx, '-shared', '-pthread', ...mac, ...files, '-o', temporary], 'millrace.node');
  renameSync(temporary, output);
}

function run(command, what) {
  return new Promise((resolve) => {
    const child = spawn(command[0], command.slice(1), { cwd: root });
    let text = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (data) => {
        text += data;
      });
    }
    child.on('close', (status) => {
      if (status === 0) {
        if (text) console.error(text.trimEnd());
        return resolve();
      }
      console.error(`millrace: ${what} does not compile:\n${command.join(' ')}\n${text.trimEnd()}`);
      process.exit(1);
    });
  });
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

function nodeHeaders() {
  const require = createRequire(import.meta.url);
  return join(dirname(require.resolve('node-api-headers')), 'include');
}

function flagsFromEnvironment() {
  return (process.env.CXXFLAGS ?? '').split(/\s+/).filter((flag) => flag !== '');
}

function hash(text) {
  return createHash('sha256').update(text).digest('hex');
}

function readOr(path) {
  return existsSync(path) ? readFileSync(path, 'utf8') : undefined;
}
