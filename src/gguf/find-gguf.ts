/** Where the GGUF file of a model is. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { ModelError } from '../errors.js';

/**
 * The file itself, or the only one of a folder without model.safetensors; undefined if `path` is a folder
 * with another kind of checkpoint. Throws `ModelError` for a folder with several.
 */
export function findGguf(path: string): string | undefined {
  if (!existsSync(path)) return undefined;
  if (!statSync(path).isDirectory()) return path.endsWith('.gguf') ? path : undefined;
  const names = readdirSync(path);
  if (names.some((name) => name.startsWith('model.safetensors'))) return undefined;
  const files = names.filter((name) => name.endsWith('.gguf')).sort();
  if (files.length > 1) {
    throw new ModelError(`${path} has ${files.join(', ')}; name the one to load`);
  }
  return files.length === 1 ? join(path, files[0]) : undefined;
}
