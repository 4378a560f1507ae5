/**
 * Service level objectives: goodput is the rate of the requests that meet all of them (Zhong et
 * al., "DistServe", OSDI 2024). Defined as in docs/metrics.md.
 */
import { expected } from '../flags/flag.js';
import { e2e, type RequestRecord, tpot, ttft } from './request-record.js';

export type SloMetric = 'ttft' | 'tpot' | 'e2el';

/** Bounds in ms. */
export type Slos = Partial<Record<SloMetric, number>>;

/** Reads `ttft:500`, `tpot:50`, `e2el:10000` (or `e2e:`). Throws UsageError. */
export function parseSlos(texts: readonly string[]): Slos {
  const slos: Slos = {};
  for (const text of texts) {
    const match = /^(ttft|tpot|e2el?):(\d+(?:\.\d+)?)$/.exec(text);
    if (!match) {
      throw expected('ttft:MS, tpot:MS or e2e:MS', 'goodput', text);
    }
    slos[match[1] === 'e2e' ? 'e2el' : (match[1] as SloMetric)] = Number(match[2]);
  }
  return slos;
}

export interface GoodputReport {
  slos: Slos;
  /** Requests that met all. */
  good: number;
  /** Share of all requests sent, failed ones included, that met each and that met all. */
  attainment: Partial<Record<SloMetric, number>>;
  attainmentAll: number;
}

/** A failed request meets nothing. An answer of one token has no TPOT and meets any, as in vLLM. */
export function goodput(records: readonly RequestRecord[], slos: Slos): GoodputReport {
  const names = Object.keys(slos) as SloMetric[];
  const met: Partial<Record<SloMetric, number>> = {};
  let good = 0;
  for (const record of records) {
    const kept = names.filter((name) => !record.error && meets(record, name, slos[name] as number));
    for (const name of kept) met[name] = (met[name] ?? 0) + 1;
    if (!record.error && kept.length === names.length) good++;
  }
  const share = (count: number) => count / records.length;
  return {
    slos,
    good,
    attainment: Object.fromEntries(names.map((name) => [name, share(met[name] ?? 0)])),
    attainmentAll: share(good),
  };
}

function meets(record: RequestRecord, name: SloMetric, bound: number): boolean {
  if (name === 'ttft') return ttft(record) <= bound;
  if (name === 'e2el') return e2e(record) <= bound;
  const value = tpot(record);
  return Number.isNaN(value) || value <= bound;
}
