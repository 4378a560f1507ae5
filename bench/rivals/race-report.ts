/** The table of rates and ratios, and the lines that belong to it. */

import { textTable } from '../../src/bench/text-table.js';
import { spread } from '../spread.js';
import { describeSettings } from './fastest-settings.js';
import type { Measurement } from './race.js';

const MEASURES = [
  ['decode', 'decode'],
  ['endToEnd', 'end to end'],
] as const;

/** The first contender is ours: rates of all, and how many times each rival's ours is. */
export function raceReport(measurements: readonly Measurement[]): string {
  const names = [...new Set(measurements.filter(({ run }) => run === 0).map((m) => m.contender))];
  const [ours, ...rivals] = names;
  const streamCounts = [...new Set(measurements.map(({ streams }) => streams))];
  const of = (name: string, streams: number) =>
    measurements.filter((one) => one.contender === name && one.streams === streams);
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const lines = rivals.flatMap((name) => {
    const all = measurements.filter((one) => one.contender === name);
    const equal = sum(all.map((one) => one.firstTokensEqual));
    const prompts = sum(all.map((one) => one.streams));
    return [
      ...streamCounts.map((streams) => {
        const used = of(name, streams).map(({ settings }) => describeSettings(settings));
        const [usual, ...others] = [...new Set(used)];
        const text = others.map((one) => `; ${count(used, one)} of ${used.length} runs ${one}`);
        return `  ${name}, ${streams} streams: ${usual}${text.join('')}`;
      }),
      `  ${name}: first token equals ours for ${equal} of ${prompts} prompts`,
    ];
  });
  const header = [
    'streams',
    ...MEASURES.flatMap(([, title]) => [
      `${title} tok/s`,
      ...rivals.flatMap((name) => [name, 'ratio']),
    ]),
  ];
  const rows = streamCounts.map((streams) => [
    String(streams),
    ...MEASURES.flatMap(([measure]) => {
      const rates = (name: string) => of(name, streams).map((one) => one[measure]);
      // Runs of the same minute are compared with each other.
      const ratios = (name: string) => {
        const theirs = rates(name);
        return rates(ours).map((rate, run) => rate / theirs[run]);
      };
      const cells = rivals.flatMap((name) => [spread(rates(name), 0), spread(ratios(name), 2)]);
      return [spread(rates(ours), 0), ...cells];
    }),
  ]);
  return [...lines, textTable(header, rows)].join('\n');
}

function count(texts: readonly string[], text: string): number {
  return texts.filter((one) => one === text).length;
}
