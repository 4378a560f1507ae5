/**
 * Mooncake's traces: JSONL with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`,
 * one id for each 512 tokens of the prompt; equal ids mean equal blocks (github.com/
 * kvcache-ai/Mooncake; Qin et al., "Mooncake", FAST 2025). Equal ids become equal tokens here, so
 * that a prefix cache finds what it would have found.
 */
import { SeededRandom } from '../seeded-random.js';
import { randomIds } from './random.js';
import { badLine, readJsonLines } from './read-lines.js';
import { type TraceOptions, type TraceRow, traceWorkload } from './trace.js';
import type { Workload } from './workload.js';

/** Tokens a hash id stands for. */
const BLOCK = 512;

/** Streams of the seed: the jitter's, and from BLOCKS on one for each hash id. */
const JITTER = 2;
const BLOCKS = 100_000_000;

interface MooncakeRow extends TraceRow {
  hashIds: number[];
}

/** `jitter`: ms over which requests of one quantised time are spread; by default found in the trace. */
export function mooncakeWorkload(
  path: string,
  options: TraceOptions & { jitter?: number },
): Workload {
  const { seed, vocabulary } = options;
  const rows = readJsonLines(path).map((line, index): MooncakeRow => {
    const row = {
      at: Number(line.timestamp),
      inputTokens: Number(line.input_length),
      outputTokens: Number(line.output_length),
      hashIds: line.hash_ids as number[],
    };
    if (Number.isNaN(row.at + row.inputTokens + row.outputTokens) || !Array.isArray(row.hashIds)) {
      const keys = '"timestamp", "input_length", "output_length" and "hash_ids"';
      throw badLine(path, index + 1, keys);
    }
    return row;
  });
  const jitter = options.jitter ?? quantum(rows);
  const random = new SeededRandom(seed, JITTER);
  for (const row of rows) row.at += random.next() * jitter;

  const workload = traceWorkload('mooncake', rows, options, (row) => {
    const { hashIds, inputTokens } = row as MooncakeRow;
    const ids: number[] = [];
    for (const id of hashIds) {
      const block = Math.min(BLOCK, inputTokens - ids.length);
      ids.push(...randomIds(block, vocabulary, new SeededRandom(seed, BLOCKS + id)));
    }
    // A row with too few hash ids ends in tokens of its own.
    const own = new SeededRandom(seed, BLOCKS - 1 - Math.round((row.at * 1000) % 1e7));
    ids.push(...randomIds(Math.max(0, inputTokens - ids.length), vocabulary, own));
    return ids;
  });
  if (jitter > 0) workload.notes.push(`times jittered by 0 to ${jitter / 1000} s`);
  return workload;
}

/**
 * The step of the clock that wrote the trace, in ms, if it is so coarse that requests pile up: the
 * published conversation trace ticks every 3 s, so that 90 % of the gaps are zero. 0 if it is fine.
 */
function quantum(rows: readonly TraceRow[]): number {
  const times = [...new Set(rows.map((row) => row.at))].sort((a, b) => a - b);
  const step = times.slice(1).reduce((divisor, time) => gcd(divisor, time - times[0]), 0);
  return step >= 1000 && times.length < rows.length ? step : 0;
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}
