/**
 * BurstGPT: CSV with Timestamp (s), Model, Request tokens, Response tokens, Total tokens, Log Type;
 * version 2 adds Session ID and Elapsed time (github.com/HPMLL/BurstGPT, CC-BY-4.0; Wang et al.,
 * "BurstGPT", 2024). Failed requests have no response tokens and are left out.
 */
import { badLine, readCsv } from './read-lines.js';
import { type TraceOptions, traceWorkload } from './trace.js';
import type { Workload } from './workload.js';

export function burstGptWorkload(path: string, options: TraceOptions): Workload {
  const rows = readCsv(path, ['Timestamp', 'Request tokens', 'Response tokens']);
  return traceWorkload(
    'burstgpt',
    rows.map(([timestamp, input, output], index) => {
      const row = { at: Number(timestamp) * 1000, inputTokens: +input, outputTokens: +output };
      if (Number.isNaN(row.at + row.inputTokens + row.outputTokens)) {
        throw badLine(path, index + 2, 'three numbers', `${timestamp},${input},${output}`);
      }
      return row;
    }),
    options,
  );
}
