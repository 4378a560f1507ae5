// Where the CUDA toolkit is, and what it can compile for.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';

/** `{ nvcc, top, version: [major, minor] }`, or `{ missing }`: a sentence that says what to do. */
export function findToolkit(env = process.env) {
  const home = env.CUDA_HOME || undefined;
  const folders = home
    ? [join(home, 'bin')]
    : [...(env.PATH ?? '').split(delimiter), '/usr/local/cuda/bin'];
  const nvcc = folders.map((folder) => join(folder, 'nvcc')).find((path) => existsSync(path));
  if (!nvcc) {
    const where = home
      ? `CUDA_HOME (${home}) has no bin/nvcc`
      : 'nvcc was not found in PATH or in /usr/local/cuda/bin';
    return {
      missing:
        `${where}. Install the CUDA toolkit 12.4 or later ` +
        '(https://developer.nvidia.com/cuda-downloads), or set CUDA_HOME to where it is.',
    };
  }
  const release = /release (\d+)\.(\d+)/.exec(output(nvcc, ['--version']) ?? '');
  if (!release)
    return { missing: `${nvcc} does not run: \`${nvcc} --version\` says nothing of a release.` };
  const version = [Number(release[1]), Number(release[2])];
  if (!isAtLeast(version, 12, 4)) {
    return { missing: `${nvcc} is of CUDA ${version.join('.')}; 12.4 or later is needed.` };
  }
  // nvcc may stand in a folder of its own; it knows where the rest is.
  const dry = output(nvcc, ['--dryrun', '-x', 'cu', '-c', '/dev/null', '-o', '/dev/null']) ?? '';
  return { nvcc, version, top: /^#\$ TOP=(.*)$/m.exec(dry)?.[1].trim() ?? join(nvcc, '../..') };
}

/**
 * The folder of cublasLt.h: the library itself is opened at run time, the header is needed to build.
 * Toolkits without it can be completed by NVIDIA's Python package.
 */
export function findCublasHeader({ top }, env = process.env) {
  const folders = env.CUBLAS_INCLUDE
    ? [env.CUBLAS_INCLUDE]
    : [join(top, 'include'), join(top, 'targets/x86_64-linux/include'), ...pythonPackages()];
  return folders.find((folder) => existsSync(join(folder, 'cublasLt.h')));
}

export const CUBLAS_ADVICE =
  'cublasLt.h was not found in the toolkit or in a Python package. Install ' +
  '`libcublas-dev` of the toolkit or `pip install nvidia-cublas`, or set CUBLAS_INCLUDE to its folder.';

/**
 * nvcc's arguments for the GPUs to compile for: data center and consumer cards from Ampere on, and
 * instructions for others to translate when they load. `chosen` (such as `80,90a`) narrows it.
 * Hopper's own instructions are in 90a only, which no other GPU runs.
 */
export function architectures(version, chosen) {
  const names = (chosen ?? '').split(/[\s,;]+/).filter((name) => name !== '');
  const wrong = names.find((name) => !/^\d{2,3}[af]?$/.test(name));
  if (wrong !== undefined) {
    throw new Error(
      `Expected names like 80 or 90a, separated by commas, for CUDA_ARCHS but received ${wrong}`,
    );
  }
  const all = ['80', '89', '90a', ...(isAtLeast(version, 12, 8) ? ['100', '120'] : [])];
  const native = (names.length > 0 ? names : all).map(
    (name) => `-gencode=arch=compute_${name},code=sm_${name}`,
  );
  return names.length > 0 ? native : [...native, '-gencode=arch=compute_80,code=compute_80'];
}

function pythonPackages() {
  const asked = output('python3', [
    '-c',
    'import site, sys; print("\\n".join([*site.getsitepackages(), site.getusersitepackages(), *sys.path]))',
  ]);
  const folders = [
    ...(asked ?? '').split('\n'),
    ...within('/usr/local/lib', /^python3/).flatMap((dir) => within(dir, /^(site|dist)-packages$/)),
    ...within(join(homedir(), '.local/lib'), /^python3/).map((dir) => join(dir, 'site-packages')),
  ].filter((folder) => folder.startsWith('/'));
  return [...new Set(folders)]
    .flatMap((folder) => within(join(folder, 'nvidia'), /^(cu\d+|cublas)$/))
    .map((folder) => join(folder, 'include'));
}

function within(folder, pattern) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((name) => pattern.test(name))
    .map((name) => join(folder, name));
}

function output(command, args) {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  return status === 0 ? stdout + stderr : undefined;
}

function isAtLeast([major, minor], wantedMajor, wantedMinor) {
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
}
