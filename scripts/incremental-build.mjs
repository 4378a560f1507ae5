// Compiles and links what is out of date. An object is rebuilt when its command or the content of
// any file of ours that it included has changed, a linked file when its objects or command have.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('..', import.meta.url));

// Paths are relative to the root, so that build/ stays current where the project is copied to.
const at = (path) => join(root, path);

/** An object in `folder` of build/; `command` compiles `source` (relative to the root) but for -o. */
export function object(source, command, folder = '') {
  const name = source.replaceAll(/[\\/]/g, '-').replace(/\.[a-z]+$/, '');
  const path = join('build', folder, `${name}.o`);
  return { source, path, stamp: `${path}.stamp`, command };
}

/** A file in build/ made of objects; `command(files, output)` is the whole command. */
export function linked(name, objects, command) {
  const output = join('build', name);
  return { name, output, objects, command, stamp: `${output}.stamp` };
}

/**
 * Builds what is out of date of `targets` (from `linked`), in their order, and what they are made
 * of. `prepare` is called first if there is anything to do, `extra(stale)` gives arguments that
 * change how fast objects are compiled, not what they are. Throws nothing: a failure is printed and
 * ends the process with 1.
 */
export async function buildTargets({ what, targets, prepare, extra = () => [], verbose = false }) {
  const objects = [...new Map(targets.flatMap((t) => t.objects).map((o) => [o.path, o])).values()];
  const stale = objects.filter((each) => !isCurrent(each));
  if (stale.length === 0 && targets.every(isLinked)) return;

  prepare();
  const start = performance.now();
  console.error(`millrace: compiling ${what}: ${stale.length} files…`);
  const more = extra(stale);
  const queue = [...stale];
  const workers = Array.from({ length: Math.max(1, availableParallelism()) }, async () => {
    for (let next = queue.shift(); next; next = queue.shift()) {
      const begin = performance.now();
      await compile(next, more);
      if (verbose) console.error(`  ${next.source} ${seconds(begin)}`);
    }
  });
  await Promise.all(workers);
  for (const target of targets) if (!isLinked(target)) await link(target);
  console.error(`millrace: ${what} ready in ${seconds(start)}`);
}

/** The stamp holds the hash of command and inputs, then the inputs, one a line. */
function isCurrent({ path, stamp, command }) {
  if (!existsSync(at(path))) return false;
  const [known, ...inputs] = (readOr(stamp) ?? '').split('\n');
  return known === inputHash(command, inputs);
}

function isLinked(target) {
  return existsSync(at(target.output)) && readOr(target.stamp) === linkHash(target);
}

function linkHash({ objects, command, output }) {
  const files = objects.map(({ path, stamp }) => `${path} ${readOr(stamp)}`);
  return hash([...command([], output), ...files].join('\n'));
}

function inputHash(command, inputs) {
  return hash([command.join(' '), ...inputs.map((path) => readOr(path))].join('\0'));
}

async function compile({ source, path, stamp, command }, more) {
  mkdirSync(dirname(at(path)), { recursive: true });
  // Other processes may build or load at the same time: finished files appear by renaming.
  const temporary = `${path}.${process.pid}`;
  const dependencies = `${temporary}.d`;
  await run([...command, ...more, '-MMD', '-MF', dependencies, '-o', temporary], source);
  const inputs = readFileSync(at(dependencies), 'utf8')
    .replace(/^[^:]*:/, '')
    .split(/[\s\\]+/)
    .filter((name) => /^(native|test)\//.test(name));
  rmSync(at(dependencies));
  writeFileSync(at(stamp), [inputHash(command, inputs), ...inputs].join('\n'));
  renameSync(at(temporary), at(path));
}

async function link(target) {
  mkdirSync(dirname(at(target.output)), { recursive: true });
  const temporary = `${target.output}.${process.pid}`;
  const files = target.objects.map(({ path }) => path);
  await run(target.command(files, temporary), target.name);
  renameSync(at(temporary), at(target.output));
  writeFileSync(at(target.stamp), linkHash(target));
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

function seconds(since) {
  return `${((performance.now() - since) / 1e3).toFixed(1)} s`;
}

function hash(text) {
  return createHash('sha256').update(text).digest('hex');
}

function readOr(path) {
  return existsSync(at(path)) ? readFileSync(at(path), 'utf8') : undefined;
}
