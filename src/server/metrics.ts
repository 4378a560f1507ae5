/**
 * /metrics: Prometheus metrics under vLLM's names, types and labels, so that dashboards and
 * autoscalers made for vLLM keep working. docs/metrics.md defines each of them.
 *
 * Names and buckets: vllm/v1/metrics/loggers.py and buckets.py of vLLM, with finer buckets added
 * below its first, since small models answer faster.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { Engine, FinishReason, RequestTiming } from '../engine/api.js';

const REQUEST_BUCKETS = [
  0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
  1920, 7680,
];
const FIRST_TOKEN_BUCKETS = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
  160, 640, 2560,
];
const TOKEN_BUCKETS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5,
  7.5, 10, 20, 40, 80,
];
const STEP_TOKENS_BUCKETS = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];
const REASONS: readonly FinishReason[] = ['stop', 'length', 'abort', 'error'];

export class Metrics {
  readonly #engineRegistry = new Registry();
  readonly #processRegistry = new Registry();
  readonly #interToken: Histogram;
  readonly #firstToken: Histogram;
  readonly #perOutputToken: Histogram;
  readonly #endToEnd: Histogram;
  readonly #queue: Histogram;
  readonly #prefill: Histogram;
  readonly #decode: Histogram;
  readonly #success: Counter<'finished_reason'>;
  readonly #stopListening: () => void;

  constructor(engine: Engine, modelName: string) {
    const registers = [this.#engineRegistry];
    // One engine in the process; vLLM's dashboards group by both labels.
    this.#engineRegistry.setDefaultLabels({ model_name: modelName, engine: '0' });
    collectDefaultMetrics({ register: this.#processRegistry });
    // They list every open connection several times a scrape: with 1,000 clients most of its cost.
    for (const what of ['handles', 'requests', 'resources']) {
      this.#processRegistry.removeSingleMetric(`nodejs_active_${what}`);
      this.#processRegistry.removeSingleMetric(`nodejs_active_${what}_total`);
    }

    const seconds = (name: string, help: string, buckets: number[]): Histogram =>
      new Histogram({ name: `vllm:${name}_seconds`, help, buckets, registers });
    this.#firstToken = seconds(
      'time_to_first_token',
      'From the arrival of a request to its first token.',
      FIRST_TOKEN_BUCKETS,
    );
    this.#interToken = seconds(
      'inter_token_latency',
      'Gap between two deltas of a choice.',
      TOKEN_BUCKETS,
    );
    this.#perOutputToken = seconds(
      'request_time_per_output_token',
      'Mean gap between the tokens of a choice.',
      TOKEN_BUCKETS,
    );
    this.#endToEnd = seconds(
      'e2e_request_latency',
      'From the arrival of a request to its end.',
      REQUEST_BUCKETS,
    );
    this.#queue = seconds(
      'request_queue_time',
      'From the arrival of a request to its first step.',
      REQUEST_BUCKETS,
    );
    this.#prefill = seconds(
      'request_prefill_time',
      'From the first step of a request to its first token.',
      REQUEST_BUCKETS,
    );
    this.#decode = seconds(
      'request_decode_time',
      'From the first token of a request to its end.',
      REQUEST_BUCKETS,
    );
    this.#success = new Counter({
      name: 'vllm:request_success_total',
      help: 'Choices that ended, by reason.',
      labelNames: ['finished_reason'],
      registers,
    });
    for (const reason of REASONS) this.#success.inc({ finished_reason: reason }, 0);

    const stepTokens = new Histogram({
      name: 'vllm:iteration_tokens_total',
      help: 'Tokens computed in a step.',
      buckets: STEP_TOKENS_BUCKETS,
      registers,
    });
    this.#stopListening = engine.onStep((report) => stepTokens.observe(report.tokens));
    engineGauges(engine, registers);
    engineCounters(engine, registers);
    cacheConfig(engine, registers);
  }

  /** A choice has its first token, so many seconds after the arrival. */
  firstToken(seconds: number): void {
    this.#firstToken.observe(seconds);
  }

  /** A gap between two deltas of a choice, in seconds. */
  interToken(seconds: number): void {
    this.#interToken.observe(seconds);
  }

  /** A choice has ended. Times that it did not come to are not counted. */
  finished(reason: FinishReason, timing: RequestTiming, completionTokens: number): void {
    const { arrival, scheduled, firstToken, finished } = timing;
    this.#success.inc({ finished_reason: reason });
    this.#endToEnd.observe((finished - arrival) / 1000);
    if (scheduled > 0) this.#queue.observe((scheduled - arrival) / 1000);
    if (firstToken > 0) {
      this.#prefill.observe((firstToken - scheduled) / 1000);
      this.#decode.observe((finished - firstToken) / 1000);
      if (completionTokens > 1) {
        this.#perOutputToken.observe((finished - firstToken) / 1000 / (completionTokens - 1));
      }
    }
  }

  readonly contentType = Registry.PROMETHEUS_CONTENT_TYPE;

  /** The page in Prometheus' text format. */
  async text(): Promise<string> {
    const pages = [this.#engineRegistry.metrics(), this.#processRegistry.metrics()];
    return (await Promise.all(pages)).join('\n');
  }

  close(): void {
    this.#stopListening();
  }
}

function engineGauges(engine: Engine, registers: Registry[]): void {
  const gauge = (name: string, help: string, value: () => number): void => {
    new Gauge({
      name: `vllm:${name}`,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  };
  gauge('num_requests_running', 'Sequences in the running set.', () => engine.stats().running);
  gauge('num_requests_waiting', 'Requests waiting to be scheduled.', () => engine.stats().waiting);
  gauge('kv_cache_usage_perc', 'KV cache in use, 1 is all of it.', () => engine.stats().kvUsage);
}

function engineCounters(engine: Engine, registers: Registry[]): void {
  const counter = (name: string, help: string, value: () => number): void => {
    new Counter({
      name: `vllm:${name}_total`,
      help,
      registers,
      collect() {
        this.reset();
        this.inc(value());
      },
    });
  };
  counter('num_preemptions', 'Preemptions.', () => engine.stats().preemptions);
  counter('prompt_tokens', 'Prompt tokens processed.', () => engine.stats().promptTokens);
  counter('generation_tokens', 'Tokens generated.', () => engine.stats().generationTokens);
  counter('prefix_cache_queries', 'Prompt tokens looked up in the prefix cache.', () => {
    return engine.stats().prefixQueries;
  });
  counter('prefix_cache_hits', 'Prompt tokens found in the prefix cache.', () => {
    return engine.stats().prefixHits;
  });
}

function cacheConfig(engine: Engine, registers: Registry[]): void {
  const { blockSize, numBlocks, enablePrefixCaching, kvCacheBytes, dtype } = engine.info;
  const labels = {
    block_size: String(blockSize),
    num_gpu_blocks: String(numBlocks),
    enable_prefix_caching: String(enablePrefixCaching),
    kv_cache_memory_bytes: String(kvCacheBytes),
    cache_dtype: dtype,
  };
  new Gauge({
    name: 'vllm:cache_config_info',
    help: 'The KV cache: always 1, the labels tell.',
    labelNames: Object.keys(labels),
    registers,
  }).set(labels, 1);
}
