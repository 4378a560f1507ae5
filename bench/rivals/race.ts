/** The measured runs: all contenders on the same prompts, in turn, at each number of streams. */
import { SeededRandom } from '../../src/bench/seeded-random.js';
import { type Contender, type Settings, TooSlowError, type Workload } from './contender.js';
import {
  type Choices,
  describeSettings,
  LEAST_LIMIT,
  type Ranking,
  rankSettings,
  TOO_LONG,
} from './fastest-settings.js';
import { type Rates, rates } from './rates.js';

/** Output tokens of the runs that find a contender's settings. */
const TRIAL_TOKENS = 24;
/**
 * A run slower than this share of what other settings promised has fallen behind: llama.cpp's
 * threads, fast in the trial, may wait for each other for minutes where a neighbour takes a core.
 */
const BEHIND = 0.8;

export interface RaceOptions {
  streamCounts: readonly number[];
  inputTokens: number;
  outputTokens: number;
  runs: number;
  /** Random prompts are below it. */
  vocabSize: number;
  /** What a contender may be run with; the fastest is found for each number of streams. */
  choices(contender: string, streams: number): Choices;
  onProgress?(text: string): void;
  /** Called with the runs at one number of streams, as soon as all contenders have had theirs. */
  onMeasured?(measured: readonly Measurement[]): void;
}

/** A contender's rates in one run. */
export interface Measurement extends Rates {
  contender: string;
  streams: number;
  run: number;
  /** Those it was fastest with. */
  settings: Settings;
  /** Prompts whose first token is that of the first contender. */
  firstTokensEqual: number;
}

export async function race(
  contenders: ReadonlyMap<string, Contender>,
  options: RaceOptions,
): Promise<Measurement[]> {
  const { streamCounts, outputTokens, runs, choices, onProgress = () => {}, onMeasured } = options;
  const random = new SeededRandom(1);
  const rankings = new Map<string, Ranking>();
  for (const streams of streamCounts) {
    for (const [name, contender] of contenders) {
      onProgress(`${streams} streams: settings of ${name}`);
      const trial = workload(random, options, streams, Math.min(TRIAL_TOKENS, outputTokens));
      const ranking = await rankSettings(contender, choices(name, streams), {
        trial,
        outputTokens,
      });
      rankings.set(`${name} ${streams}`, ranking);
      onProgress(`${streams} streams: ${name} runs with ${describeSettings(ranking[0].settings)}`);
    }
  }
  const measurements: Measurement[] = [];
  for (let run = 0; run < runs; run++) {
    for (const streams of streamCounts) {
      const task = workload(random, options, streams, outputTokens);
      const firsts = new Map<string, number[]>();
      // Who goes first changes from run to run.
      const order = [...contenders].map((_, i, all) => all[(i + run) % all.length]);
      const measured: Measurement[] = [];
      for (const [name, contender] of order) {
        const where = `run ${run + 1} of ${runs}, ${streams} streams: ${name}`;
        onProgress(where);
        const ranking = rankings.get(`${name} ${streams}`)!.filter(({ rate }) => rate !== 0);
        let best: Measurement | undefined;
        for (const [i, { settings, rate }] of ranking.entries()) {
          if (best && !(best.endToEnd < BEHIND * rate)) continue;
          if (i > 0) {
            onProgress(`${where}, which fell behind, with ${describeSettings(settings)}`);
          }
          await contender.prepare?.(streams, settings);
          // The last one has to come to its end.
          const limit = i + 1 < ranking.length ? limitMs(task, rate) : undefined;
          const result = await contender.run(task, settings, limit).catch(unlessTooSlow);
          if (!result) continue;
          const found = rates(result, streams * options.inputTokens);
          if (best && best.endToEnd >= found.endToEnd) continue;
          best = { contender: name, streams, run, settings, ...found, firstTokensEqual: 0 };
          firsts.set(
            name,
            result.tokens.map(([first]) => first),
          );
        }
        if (!best) throw new Error(`${where} came to no end`);
        measured.push(best);
      }
      const [ours] = contenders.keys();
      for (const one of measured) {
        const tokens = firsts.get(one.contender)!;
        one.firstTokensEqual = tokens.filter((t, i) => t === firsts.get(ours)![i]).length;
      }
      measurements.push(...measured);
      onMeasured?.(measured);
    }
  }
  return measurements;
}

/** Of a run for which `rate` is promised. */
function limitMs({ prompts, outputTokens }: Workload, rate: number): number {
  return Math.max(LEAST_LIMIT, (TOO_LONG * 1000 * prompts.length * outputTokens) / rate);
}

function unlessTooSlow(error: unknown): undefined {
  if (!(error instanceof TooSlowError)) throw error;
}

function workload(
  random: SeededRandom,
  { inputTokens, vocabSize }: RaceOptions,
  streams: number,
  outputTokens: number,
): Workload {
  const prompt = () => Array.from({ length: inputTokens }, () => random.integer(0, vocabSize));
  return { prompts: Array.from({ length: streams }, prompt), outputTokens };
}
