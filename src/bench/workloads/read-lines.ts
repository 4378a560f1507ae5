/** Reading the files workloads come in. Errors name file and line. */
import { readFileSync } from 'node:fs';
import { InvalidParameterError } from '../../errors.js';

/** Throws InvalidParameterError for `--dataset-path` if the file cannot be read. */
export function readDataset(path: string): string {
  try {
    return readFileSync(path, 'utf8').replace(/^\uFEFF/, '');
  } catch (cause) {
    throw new InvalidParameterError(
      `Expected a readable file for --dataset-path: ${(cause as Error).message}`,
      { param: '--dataset-path', cause },
    );
  }
}

/** The objects of a JSONL file, empty lines passed over. */
export function readJsonLines(path: string): Record<string, unknown>[] {
  const objects: Record<string, unknown>[] = [];
  for (const [index, line] of readDataset(path).split('\n').entries()) {
    if (line.trim() === '') continue;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch {
      throw badLine(path, index + 1, 'a JSON object');
    }
    if (typeof value !== 'object' || value === null)
      throw badLine(path, index + 1, 'a JSON object');
    objects.push(value as Record<string, unknown>);
  }
  return objects;
}

/**
 * The rows of a CSV file with a header, as the columns asked for. The traces quote nothing, so a
 * comma always separates. Throws InvalidParameterError if a column is missing or a row is short.
 */
export function readCsv(path: string, columns: readonly string[]): string[][] {
  const lines = readDataset(path).split(/\r?\n/);
  const header = lines[0].split(',').map((name) => name.trim());
  const places = columns.map((name) => {
    const place = header.indexOf(name);
    if (place < 0) throw badLine(path, 1, `a column "${name}"`, lines[0]);
    return place;
  });
  const rows: string[][] = [];
  for (let i = 1; i < lines.length; i++) {
    if (lines[i].trim() === '') continue;
    const cells = lines[i].split(',');
    if (cells.length < header.length)
      throw badLine(path, i + 1, `${header.length} columns`, lines[i]);
    rows.push(places.map((place) => cells[place]));
  }
  return rows;
}

export function badLine(path: string, line: number, expected: string, received?: string) {
  const came = received === undefined ? '' : ` but received ${JSON.stringify(received)}`;
  return new InvalidParameterError(`Expected ${expected} in line ${line} of ${path}${came}`, {
    param: '--dataset-path',
  });
}
