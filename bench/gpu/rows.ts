/** The rows of the table of floors.ts: what is measured, and the floor it is held against. */
export interface Row {
  name: string;
  shape: string;
  work: string;
  unit: 'tok/s' | 'ms' | 'TFLOP/s' | 'us' | 'x';
  /** Whether more of the unit is better. */
  more: boolean;
  /** In the unit; where it depends on the shape or on another row, the measurement tells it. */
  floor?: number;
  /** About how long it takes on the GPU the floors are of, start included; it is killed after twice that. */
  seconds: number;
  kvCacheDtype?: 'fp8';
  quantization?: 'fp8';
  /** Fewer than `--runs` where one run is long enough to be steady. */
  runs?: number;
}

export const ROWS: readonly Row[] = [
  {
    name: '1b-offline',
    shape: 'llama-3.2-1b',
    work: '256 requests at once, 128 in, 128 out',
    ...{ unit: 'tok/s', more: true, floor: 90_000, seconds: 15 },
  },
  {
    name: '1b-offline-kv8',
    shape: 'llama-3.2-1b',
    work: 'the same with keys and values in fp8',
    ...{ unit: 'tok/s', more: true, floor: 90_000, seconds: 15, kvCacheDtype: 'fp8' },
  },
  {
    name: '8b-offline',
    shape: 'llama-3.1-8b',
    work: '256 requests at once, 128 in, 128 out',
    ...{ unit: 'tok/s', more: true, floor: 22_000, seconds: 25 },
  },
  {
    name: 'http',
    shape: 'llama-3.1-8b',
    work: 'the same through the server, 256 streaming clients',
    ...{ unit: 'tok/s', more: true, seconds: 40 },
  },
  {
    name: '8b-decode',
    shape: 'llama-3.1-8b',
    work: 'one decode step, batch 64, context 1,024',
    ...{ unit: 'ms', more: false, seconds: 25 },
  },
  {
    name: '8b-prefill',
    shape: 'llama-3.1-8b',
    work: 'prefill of 8 x 4,096 tokens',
    ...{ unit: 'TFLOP/s', more: true, seconds: 20 },
  },
  {
    name: 'host',
    shape: 'llama-3.2-1b',
    work: 'host work not hidden, a decode step of 64',
    ...{ unit: 'us', more: false, floor: 50, seconds: 20 },
  },
  {
    name: '0.6b-uniform',
    shape: 'qwen3-0.6b',
    work: '256 requests at once, 100-1,024 in and out',
    ...{ unit: 'tok/s', more: true, floor: 45_000, seconds: 30 },
  },
  {
    name: '0.6b-uniform-kv8',
    shape: 'qwen3-0.6b',
    work: 'the same with keys and values in fp8',
    ...{ unit: 'tok/s', more: true, floor: 45_000, seconds: 25, kvCacheDtype: 'fp8' },
  },
  {
    name: '8b-long-kv8',
    shape: 'llama-3.1-8b',
    work: '512 requests at once, 1,000 in, 1,000 out, keys and values in fp8',
    ...{ unit: 'tok/s', more: true, floor: 12_000, seconds: 70, runs: 1, kvCacheDtype: 'fp8' },
  },
  {
    name: '8b-offline-w8',
    shape: 'llama-3.1-8b',
    work: '256 requests at once, 128 in, 128 out, weights, keys and values in fp8',
    ...{ unit: 'tok/s', more: true, floor: 22_000, seconds: 30 },
    ...{ kvCacheDtype: 'fp8', quantization: 'fp8' },
  },
  {
    name: '8b-fp8',
    shape: 'llama-3.1-8b',
    work: 'weights in fp8 over bf16, 128 requests at once, 128 in, 128 out',
    ...{ unit: 'x', more: true, floor: 1.35, seconds: 50 },
  },
  {
    name: '8b-long-w8',
    shape: 'llama-3.1-8b',
    work: '512 requests at once, 1,000 in, 1,000 out, weights, keys and values in fp8',
    ...{ unit: 'tok/s', more: true, floor: 12_000, seconds: 60, runs: 1 },
    ...{ kvCacheDtype: 'fp8', quantization: 'fp8' },
  },
  {
    name: '8b-long',
    shape: 'llama-3.1-8b',
    work: '512 requests at once, 1,000 in, 1,000 out',
    ...{ unit: 'tok/s', more: true, floor: 12_000, seconds: 75, runs: 1 },
  },
];

/** What a row's process is told. */
export interface Job {
  row: Row;
  modelDir: string;
  device: string;
  runs: number;
  /** The GPU's limits, for floors that are made of them. */
  flopsPerSecond: number;
  bytesPerSecond: number;
}

/** What it answers. */
export interface Measured {
  values: number[];
  floor?: number;
  note?: string;
}
