/** Installs the rival that comes from npm, into a folder of its own: it is no dependency of ours. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** MIT licence; bundles llama.cpp v0.5.0 as a prebuilt binary for each platform. */
export const NODE_LLAMA_CPP = '3.22.1';

/**
 * Installs node-llama-cpp and its CPU binary for this platform under `folder` unless they are there;
 * returns the path of its entry. `--omit=optional` leaves out the GPU binaries (gigabytes), so the
 * CPU one is named; scripts are not run, so nothing is compiled or fetched from elsewhere.
 */
export function installNodeLlamaCpp(folder: string): string {
  const binary = `@node-llama-cpp/${binaryName()}`;
  const modules = join(folder, 'node_modules');
  const wanted = { 'node-llama-cpp': NODE_LLAMA_CPP, [binary]: NODE_LLAMA_CPP };
  if (Object.entries(wanted).some(([name, version]) => installed(modules, name) !== version)) {
    mkdirSync(folder, { recursive: true });
    const manifest = { private: true, type: 'module', dependencies: wanted };
    writeFileSync(join(folder, 'package.json'), JSON.stringify(manifest, null, 2));
    const flags = ['--omit=optional', '--ignore-scripts', '--no-audit', '--no-fund'];
    execFileSync('npm', ['install', ...flags], { cwd: folder, stdio: ['ignore', 2, 2] });
  }
  return join(modules, 'node-llama-cpp', 'dist', 'index.js');
}

function binaryName(): string {
  const { platform, arch } = process;
  if (platform === 'darwin') return arch === 'arm64' ? 'mac-arm64-metal' : 'mac-x64';
  return `${platform === 'win32' ? 'win' : platform}-${arch}`;
}

function installed(modules: string, name: string): string | undefined {
  const manifest = join(modules, name, 'package.json');
  if (!existsSync(manifest)) return undefined;
  return (JSON.parse(readFileSync(manifest, 'utf8')) as { version: string }).version;
}
