/** Whether all contenders compute the same model, by their greedy tokens; before anything is timed. */
import { readFileSync } from 'node:fs';
import { loadTokenizer } from '../../src/tokenizer/load-tokenizer.js';
import { agreement, describeAgreement } from './agreement.js';
import type { Contender, Settings, Streams, Workload } from './contender.js';

const PROMPTS = 32;
const TOKENS = 64;

export interface CheckOptions {
  /** With the tokenizer. */
  directory: string;
  /** JSON lines with a `prompt` each, asked as a user's message. */
  prompts: string;
  /** Greedy continuations of the reference implementation. */
  golden?: string;
  settings: Settings;
}

/**
 * Yields a line for each comparison: of the first contender with each of the others, and of all with
 * the reference.
 */
export async function* check(
  contenders: ReadonlyMap<string, Contender>,
  { directory, prompts, golden, settings }: CheckOptions,
): AsyncGenerator<string> {
  const workload = {
    prompts: await readPrompts(directory, prompts),
    outputTokens: TOKENS,
    withMargins: true,
  };
  const [[ourName, ours], ...rivals] = contenders;
  const expected = await ours.run(workload, settings);
  for (const [name, rival] of rivals) {
    const found = agreement(expected, await rival.run(workload, settings));
    yield describeAgreement(`${ourName} and ${name}`, found);
  }
  if (golden === undefined) return;
  const reference = readGolden(golden);
  for (const [name, contender] of contenders) {
    const found = agreement(reference, await contender.run(reference, settings));
    yield describeAgreement(`the float32 reference and ${name}`, found);
  }
}

async function readPrompts(directory: string, file: string): Promise<number[][]> {
  const tokenizer = await loadTokenizer(directory);
  const lines = readFileSync(file, 'utf8').split('\n').slice(0, PROMPTS);
  return lines.map((line) => {
    const content = (JSON.parse(line) as { prompt: string }).prompt;
    const text = tokenizer.applyChatTemplate([{ role: 'user', content }], {
      addGenerationPrompt: true,
    });
    return tokenizer.encode(text, { addSpecialTokens: false });
  });
}

/** The reference's prompts as a workload, and its tokens as if it had run. */
function readGolden(file: string): Workload & Streams {
  interface Continuation {
    prompt_ids: number[];
    tokens: number[];
    margin: number[];
  }
  const { greedy } = JSON.parse(readFileSync(file, 'utf8')) as { greedy: Continuation[] };
  return {
    prompts: greedy.map(({ prompt_ids }) => prompt_ids),
    outputTokens: Math.min(...greedy.map(({ tokens }) => tokens.length)),
    ...{ start: 0, times: [], margins: greedy.map(({ margin }) => margin) },
    tokens: greedy.map(({ tokens }) => tokens),
  };
}
