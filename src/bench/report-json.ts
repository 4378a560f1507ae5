/**
 * A measurement as JSON: the keys of `vllm bench serve` with its meanings, and ours beside them.
 * Raw times of each request as JSONL. docs/benchmarking.md lists the keys.
 */
import type { RequestRecord } from './request-record.js';
import type { BenchResult, SweepResult } from './result.js';
import { LATENCIES, type Latency } from './summary.js';

/** NaN and Infinity, which JSON lacks, become null. */
export function jsonReport(result: BenchResult): Record<string, unknown> {
  const { settings, summary, health } = result;
  const { steady, goodput, timeline } = summary;
  return {
    date: result.date,
    backend: settings.endpoint.endsWith('chat/completions') ? 'openai-chat' : 'openai',
    label: settings.label,
    model_id: settings.model,
    num_prompts: settings.numPrompts,
    request_rate:
      settings.requestRate === Number.POSITIVE_INFINITY ? 'inf' : (settings.requestRate ?? 'trace'),
    burstiness: settings.burstiness === Number.POSITIVE_INFINITY ? 'inf' : settings.burstiness,
    max_concurrency: settings.maxConcurrency,
    ...(settings.ramp && {
      ramp_up_strategy: settings.ramp.strategy,
      ramp_up_start_rps: settings.ramp.startRps,
      ramp_up_end_rps: settings.ramp.endRps,
    }),
    duration: summary.duration,
    completed: summary.completed,
    failed: summary.failed,
    total_input_tokens: summary.inputTokens,
    total_output_tokens: summary.outputTokens,
    request_throughput: summary.requestThroughput,
    request_goodput: goodput?.requestsPerSecond ?? null,
    output_throughput: summary.outputThroughput,
    total_token_throughput: summary.totalThroughput,
    max_output_tokens_per_s: summary.maxOutputTokensPerSecond,
    max_concurrent_requests: summary.maxConcurrency,
    ...Object.assign(
      {},
      ...(Object.keys(LATENCIES) as Latency[]).map((name) =>
        latencyKeys(name, summary.latencies[name]),
      ),
    ),

    // From here on ours.
    url: settings.url,
    endpoint: settings.endpoint,
    dataset: settings.dataset,
    workload: settings.workload,
    seed: settings.seed,
    speedup: settings.speedup ?? null,
    partial: result.partial,
    notes: result.notes,
    total_cached_tokens: summary.cachedTokens,
    errors_by_kind: summary.errors,
    error_examples: summary.errorExamples,
    finish_reasons: summary.finishReasons,
    usage_mismatches: summary.usageMismatches,
    usage_missing: summary.usageMissing,
    steady_window: steady.steady,
    steady_duration: (steady.to - steady.from) / 1000,
    steady_request_throughput: steady.requests.value,
    ci95_steady_request_throughput: steady.requests.interval,
    steady_output_throughput: steady.outputTokens.value,
    ci95_steady_output_throughput: steady.outputTokens.interval,
    steady_total_token_throughput: steady.totalTokens.value,
    ci95_steady_total_token_throughput: steady.totalTokens.interval,
    goodput_slos: goodput?.slos ?? null,
    slo_attainment: goodput ? { ...goodput.attainment, all: goodput.attainmentAll } : null,
    client: {
      bottleneck: health.bottleneck ?? null,
      utilization: health.utilization,
      worst_utilization: health.worstUtilization,
      loop_delay_p99_ms: health.loopDelayP99,
      late_p50_ms: health.lateP50,
      late_p99_ms: health.lateP99,
      late_max_ms: health.lateMax,
    },
    timeline: {
      step_s: timeline.step,
      concurrency: timeline.concurrency,
      output_tokens_per_s: timeline.tokens,
    },
  };
}

function latencyKeys(
  name: Latency,
  { mean, std, percentiles, intervals, quantiles }: BenchResult['summary']['latencies'][Latency],
) {
  return {
    [`mean_${name}_ms`]: mean,
    [`median_${name}_ms`]: percentiles[50],
    [`std_${name}_ms`]: std,
    ...Object.fromEntries([90, 95, 99].map((p) => [`p${p}_${name}_ms`, percentiles[p]])),
    [`ci95_mean_${name}_ms`]: intervals.mean,
    [`ci95_median_${name}_ms`]: intervals.percentiles[50],
    ...Object.fromEntries(
      [90, 95, 99].map((p) => [`ci95_p${p}_${name}_ms`, intervals.percentiles[p]]),
    ),
    [`quantiles_${name}_ms`]: quantiles,
  };
}

export function sweepJson(sweep: SweepResult): Record<string, unknown> {
  return {
    date: sweep.date,
    label: sweep.settings.label,
    model_id: sweep.settings.model,
    partial: sweep.partial,
    notes: sweep.notes,
    saturation_request_throughput: sweep.saturation.requests,
    saturation_output_throughput: sweep.saturation.outputTokens,
    sweep: sweep.points.map((point) => ({
      name: point.name,
      offered_rate: point.rate,
      over_saturated: point.overSaturated,
      ...jsonReport(point.result),
    })),
  };
}

/**
 * One line for each request; times in ms from the first intended one. `point`: of a sweep, which the
 * requests belong to.
 */
export function requestLines(records: readonly RequestRecord[], point?: string): string {
  const start = records.reduce(
    (least, record) => Math.min(least, record.intended),
    Number.POSITIVE_INFINITY,
  );
  const since = (time: number) => Math.round((time - start) * 1000) / 1000;
  return records
    .map((record, index) => {
      const line = {
        point,
        index,
        intended_ms: since(record.intended),
        sent_ms: since(record.sent),
        first_byte_ms: record.firstByte === 0 ? null : since(record.firstByte),
        token_times_ms: record.tokenTimes.map(since),
        end_ms: since(record.end),
        prompt_tokens: record.promptTokens,
        cached_tokens: record.cachedTokens,
        output_tokens: record.outputTokens,
        usage_tokens: record.usageTokens ?? null,
        finish_reason: record.finishReason,
        error: record.error ?? null,
      };
      return `${JSON.stringify(line)}\n`;
    })
    .join('');
}
