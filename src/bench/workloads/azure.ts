/**
 * The Azure LLM inference trace of 2023: CSV with TIMESTAMP (to 100 ns), ContextTokens and
 * GeneratedTokens (github.com/Azure/AzurePublicDataset, CC-BY-4.0; Patel et al., "Splitwise", ISCA
 * 2024). Prompts are random ids of the given lengths.
 */
import { badLine, readCsv } from './read-lines.js';
import { type TraceOptions, traceWorkload } from './trace.js';
import type { Workload } from './workload.js';

export function azureWorkload(path: string, options: TraceOptions): Workload {
  const rows = readCsv(path, ['TIMESTAMP', 'ContextTokens', 'GeneratedTokens']);
  return traceWorkload(
    'azure',
    rows.map(([timestamp, input, output], index) => {
      const row = { at: azureTime(timestamp), inputTokens: +input, outputTokens: +output };
      if (Number.isNaN(row.at + row.inputTokens + row.outputTokens)) {
        throw badLine(path, index + 2, 'a time and two numbers', `${timestamp},${input},${output}`);
      }
      return row;
    }),
    options,
  );
}

/** `2023-11-16 18:15:46.6805900` in ms; the digits that Date does not read are kept. */
function azureTime(text: string): number {
  const match = /^(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?/.exec(text);
  if (!match) return Number.NaN;
  return Date.parse(`${match[1]}T${match[2]}Z`) + Number(match[3] ?? 0) * 1000;
}
