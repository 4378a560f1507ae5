/** Where cuBLASLt may be: the loader's own places, the toolkit, NVIDIA's Python packages. */
import { existsSync, readdirSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** Newest first but for `preferred`, the major version that the addon was built with. */
export function cublasLibraries(preferred: number, env = process.env): string[] {
  const majors = [13, 12].sort((a, b) => Number(b === preferred) - Number(a === preferred));
  return majors.flatMap((major) => {
    const name = `libcublasLt.so.${major}`;
    const folders = [...toolkitFolders(env), ...pythonFolders(major, env)];
    return [
      name,
      ...folders.map((folder) => join(folder, name)).filter((path) => existsSync(path)),
    ];
  });
}

function toolkitFolders({ CUDA_HOME, CUDA_PATH }: NodeJS.ProcessEnv): string[] {
  return [CUDA_HOME, CUDA_PATH, '/usr/local/cuda']
    .filter((home) => home !== undefined && home !== '')
    .flatMap((home) => [join(home!, 'lib64'), join(home!, 'targets/x86_64-linux/lib')]);
}

/** `nvidia-cublas` puts version 13 into nvidia/cu13, `nvidia-cublas-cu12` 12 into nvidia/cublas. */
function pythonFolders(major: number, { VIRTUAL_ENV }: NodeJS.ProcessEnv): string[] {
  const roots = [VIRTUAL_ENV, '/usr/local', '/usr', join(homedir(), '.local')];
  return roots
    .filter((root) => root !== undefined && root !== '')
    .flatMap((root) => within(join(root!, 'lib'), /^python3/))
    .flatMap((folder) => within(folder, /^(site|dist)-packages$/))
    .map((folder) => join(folder, 'nvidia', major === 12 ? 'cublas' : `cu${major}`, 'lib'));
}

function within(folder: string, pattern: RegExp): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((name) => pattern.test(name))
    .map((name) => join(folder, name));
}
