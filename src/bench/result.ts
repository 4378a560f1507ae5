/** What a measurement yields; every report reads this and nothing else. */
import type { HealthReport } from './client-health.js';
import type { Summary } from './summary.js';

/** How it was measured. */
export interface Settings {
  label: string;
  url: string;
  endpoint: string;
  model: string;
  dataset: string;
  /** The dataset with its lengths or its file. */
  workload: string;
  numPrompts: number;
  /** Requests a second; Infinity for a closed loop, null for a trace's own times. */
  requestRate: number | null;
  burstiness: number;
  maxConcurrency: number | null;
  ramp?: { strategy: string; startRps: number; endRps: number };
  speedup?: number;
  seed: number;
}

export interface BenchResult {
  /** ISO 8601. */
  date: string;
  settings: Settings;
  summary: Summary;
  health: HealthReport;
  /** What a reader must know besides: left-out rows, jitter, repeats. */
  notes: string[];
  /** The run was interrupted. */
  partial: boolean;
}

export interface SweepPoint {
  /** Requests a second offered; null for the closed loops at either end. */
  rate: number | null;
  name: string;
  result: BenchResult;
  /** The queue grew without bound, and the point was stopped early. */
  overSaturated: boolean;
}

/** From idle to saturation. */
export interface SweepResult {
  date: string;
  settings: Settings;
  points: SweepPoint[];
  /** Requests and output tokens a second that the server reaches when it never waits for work. */
  saturation: { requests: number; outputTokens: number };
  notes: string[];
  partial: boolean;
}
