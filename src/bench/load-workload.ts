/** From the flags to the list of requests and the times they are meant to be sent. */
import { basename } from 'node:path';
import { loadTokenizer } from '../tokenizer/load-tokenizer.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';
import { arrivalTimes } from './arrivals.js';
import { SeededRandom } from './seeded-random.js';
import type { ServeOptions } from './serve-options.js';
import { azureWorkload } from './workloads/azure.js';
import { burstGptWorkload } from './workloads/burstgpt.js';
import { lengthsText } from './workloads/lengths.js';
import { mooncakeWorkload } from './workloads/mooncake.js';
import { mtBenchWorkload } from './workloads/mt-bench.js';
import { promptsFileWorkload } from './workloads/prompts-file.js';
import { randomWorkload } from './workloads/random.js';
import { shareGptWorkload } from './workloads/sharegpt.js';
import { tokenRange, type Workload, type WorkloadRequest } from './workloads/workload.js';

export interface LoadedWorkload extends Workload {
  /** In the words of a report, with the lengths or the file. */
  description: string;
  /** Where its prompts go. */
  endpoint: string;
  /** Random prompts and traces run to the length asked for. */
  ignoreEos: boolean;
  decode?: (ids: number[]) => string;
}

const DEFAULT_OUTPUT = 256;
const DEFAULT_PROMPTS = 1000;
/** Enough not to repeat any; they are made only when they are sent. */
const SWEEP_PROMPTS = 100_000;
const DEFAULT_VOCABULARY = 2000;

/** Throws InvalidParameterError for a file that is not what `--dataset-name` says. */
export async function loadWorkload(options: ServeOptions): Promise<LoadedWorkload> {
  const tokenizer = options.tokenizer ? await loadTokenizer(options.tokenizer) : undefined;
  const workload = readWorkload(options, tokenizer);
  if (options.dataset !== 'random') take(workload, options.numPrompts);
  if (tokenizer && workload.requests.some(({ inputTokens }) => inputTokens !== undefined)) {
    workload.notes.push('random ids sent as text: the server may count other prompt lengths');
  }
  const chat = options.dataset === 'mt-bench' || workload.requests.some(hasMessages(options));
  return {
    ...workload,
    description: describe(options),
    endpoint: options.endpoint ?? (chat ? '/v1/chat/completions' : '/v1/completions'),
    ignoreEos: options.ignoreEos ?? !['custom', 'sharegpt', 'mt-bench'].includes(options.dataset),
    decode: tokenizer && ((ids) => tokenizer.decode(ids)),
  };
}

function readWorkload(options: ServeOptions, tokenizer?: Tokenizer): Workload {
  const { dataset, seed, outputTokens } = options;
  const path = options.datasetPath ?? '';
  const size = options.vocabSize ?? tokenizer?.vocabSize ?? DEFAULT_VOCABULARY;
  const vocabulary = tokenRange(size);
  switch (dataset) {
    case 'random': {
      const count = options.numPrompts ?? (options.sweep ? SWEEP_PROMPTS : DEFAULT_PROMPTS);
      return randomWorkload({ ...options, count, vocabulary });
    }
    case 'custom':
      return promptsFileWorkload(path, { outputTokens: outputTokens ?? DEFAULT_OUTPUT });
    case 'mt-bench':
      return mtBenchWorkload(path, { outputTokens: outputTokens ?? DEFAULT_OUTPUT });
    case 'sharegpt':
      return shareGptWorkload(path, {
        outputTokens,
        countTokens: tokenizer && ((text) => tokenizer.encode(text).length),
      });
    case 'azure':
      return azureWorkload(path, { seed, vocabulary });
    case 'burstgpt':
      return burstGptWorkload(path, { seed, vocabulary });
    case 'mooncake': {
      return mooncakeWorkload(path, { seed, vocabulary, jitter: options.traceJitter });
    }
  }
}

function describe(options: ServeOptions): string {
  const { dataset, datasetPath, input, output, outputTokens } = options;
  const { prefixTokens, prefixShare, prefixes } = options;
  if (dataset !== 'random') {
    const length = outputTokens === undefined ? '' : `, ${outputTokens} out`;
    return `${dataset} (${basename(datasetPath ?? '')}${length})`;
  }
  const shared = `${prefixes} ${prefixes === 1 ? 'prefix' : 'prefixes'} of ${prefixShare * 100} %`;
  return `random (${[
    `${lengthsText(input)} in`,
    `${lengthsText(output)} out`,
    ...(prefixTokens > 0 ? [`after ${prefixTokens} common ones`] : []),
    ...(prefixShare > 0 ? [shared] : []),
  ].join(', ')})`;
}

/** Cuts or repeats the requests to `count`; traces, which have times, are only cut. */
function take(workload: Workload, count: number | undefined): void {
  const { requests, notes } = workload;
  if (count === undefined || requests.length === 0) return;
  const size = requests.length;
  if (count > size && requests[0].at === undefined) {
    workload.requests = Array.from({ length: count }, (_, index) => requests[index % size]);
    notes.push(`${size} prompts in the file, repeated to ${count}`);
  } else {
    workload.requests = requests.slice(0, count);
  }
}

/** Only a file of prompts can hold messages, and there making a prompt costs nothing. */
function hasMessages(options: ServeOptions) {
  return (request: WorkloadRequest) => {
    if (options.dataset !== 'custom') return false;
    const prompt = request.prompt();
    return Array.isArray(prompt) && typeof prompt[0] === 'object';
  };
}

/** Intended times in ms from the start; undefined for a closed loop. */
export function intendedTimes(
  requests: readonly WorkloadRequest[],
  options: ServeOptions,
): number[] | undefined {
  const { requestRate, burstiness, ramp, speedup, seed } = options;
  if (requestRate === undefined && ramp === undefined) {
    if (requests[0]?.at === undefined) return undefined;
    return requests.map(({ at = 0 }) => at / speedup);
  }
  const rate = requestRate ?? Number.POSITIVE_INFINITY;
  if (rate === Number.POSITIVE_INFINITY && ramp === undefined) return undefined;
  return arrivalTimes(requests.length, { rate, burstiness, ramp }, new SeededRandom(seed, 0));
}
