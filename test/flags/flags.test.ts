import assert from 'node:assert/strict';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { BENCH_ENGINE_FLAGS } from '../../src/bench/engine/engine-options.js';
import { BENCH_SERVE_FLAGS } from '../../src/bench/serve-flags.js';
import { SERVE_FLAGS } from '../../src/cli/serve-flags.js';
import { InvalidParameterError } from '../../src/errors.js';
import { asUsage } from '../../src/flags/engine-flags.js';
import { type FlagTable, UsageError } from '../../src/flags/flag.js';
import { flagHelp } from '../../src/flags/flag-help.js';
import {
  bytes,
  choice,
  integer,
  integers,
  number,
  outputFile,
  seconds,
  string,
  strings,
  toggle,
} from '../../src/flags/kinds.js';
import { parseFlags } from '../../src/flags/parse-flags.js';

test('What the engine refuses is named by its flag, and nothing else of the message changes', () => {
  const usage = (param: string, message: string) => {
    try {
      return asUsage(SERVE_FLAGS, new InvalidParameterError(message, { param }));
    } catch (error) {
      assert.ok(error instanceof UsageError);
      return error.message;
    }
  };
  assert.equal(
    usage('quantization', 'No quantization. Take quantization-overrides, not quantization'),
    'No --quantization. Take --quantization-overrides, not --quantization',
  );
  assert.equal(usage('kvCacheDtype', 'kvCacheDtype is wrong'), '--kv-cache-dtype is wrong');
  const path = 'seed /x/seed.txt: ENOENT, open \'/x/seed.txt\', received "seed"';
  assert.equal(usage('seed', path), `--${path}`);
});

const group = 'Group';
const TABLE = {
  name: string({ group, help: 'A name.' }),
  tag: strings({ group, help: 'A tag.' }),
  mode: choice({ group, help: 'A mode.', of: ['slow', 'fast'], default: 'slow' }),
  count: integer({ group, help: 'A count.', min: 1, max: 9, default: 3 }),
  size: bytes({ group, help: 'A size.' }),
  wait: seconds({ group, help: 'A time.', default: 1500 }),
  cache: toggle({ group: 'Other', help: 'Do without the cache.', default: true }),
  loud: toggle({ group: 'Other', help: 'Be loud.', default: false }),
};
const NUMBERS = {
  rate: number({ group, help: 'A rate.', placeholder: 'R', above: 0, infinite: true }),
  share: number({ group, help: 'A share.', placeholder: 'S', min: 0, max: 1, default: 0.5 }),
  sizes: integers({ group, help: 'Sizes.', min: 1, default: [1, 2] }),
  header: strings({ group, help: 'A header.', placeholder: 'KEY=VALUE', form: /^\w+=/ }),
  eos: toggle({ group, help: 'Whether to stop.', shownDefault: 'as the model' }),
};

function usage(argv: string[], pattern: RegExp, table: FlagTable = TABLE): void {
  assert.throws(
    () => parseFlags(table, argv),
    (error) => error instanceof UsageError && pattern.test(error.message),
    argv.join(' '),
  );
}

test('a file to write at the end is refused at once where it cannot be written', () => {
  const table = { out: outputFile({ group, help: 'A file.' }) };
  const path = join(tmpdir(), 'millrace-not-there.json');
  assert.equal(parseFlags(table, ['--out', path]).values.out, path);
  usage(
    ['--out', '/no/such/folder/x.json'],
    /^Expected a file that can be written for --out/,
    table,
  );
  usage(['--out', tmpdir()], /^Expected a file, not a folder, for --out/, table);
});

test('absent flags have their defaults and positionals stay in order', () => {
  const { values, positionals } = parseFlags(TABLE, ['a', '--loud', 'b']);
  assert.deepEqual(positionals, ['a', 'b']);
  assert.deepEqual(values, {
    name: undefined,
    tag: [],
    mode: 'slow',
    count: 3,
    size: undefined,
    wait: 1500,
    cache: true,
    loud: true,
  });
});

test('values are parsed by kind, with = or a space, and lists collect', () => {
  const { values } = parseFlags(TABLE, [
    '--name=x=y',
    '--tag',
    'a',
    '--tag',
    'b',
    '--mode',
    'fast',
    '--count=9',
    '--size',
    '1.5GiB',
    '--wait',
    '2.5',
    '--no-cache',
  ]);
  assert.deepEqual(values, {
    name: 'x=y',
    tag: ['a', 'b'],
    mode: 'fast',
    count: 9,
    size: 1.5 * 2 ** 30,
    wait: 2500,
    cache: false,
    loud: false,
  });
});

test('sizes are bytes, or decimal or binary units in any case', () => {
  const size = (text: string) => parseFlags(TABLE, ['--size', text]).values.size;
  assert.deepEqual(['1024', '4GiB', '512mib', '2kB', '3 TB', '7b'].map(size), [
    1024,
    4 * 2 ** 30,
    512 * 2 ** 20,
    2000,
    3e12,
    7,
  ]);
  for (const wrong of ['', 'GiB', '-1', '0', '4XiB', '1e9', '4GiBs'])
    usage(['--size', wrong], /size like 4GiB/);
});

test('numbers have bounds, lists have commas, and a toggle without a default leaves it open', () => {
  const { rate, share, sizes, eos } = parseFlags(NUMBERS, []).values;
  assert.deepEqual([rate, share, sizes, eos], [undefined, 0.5, [1, 2], undefined]);
  const given = ['--rate', 'inf', '--share=1', '--sizes', '4,16', '--no-eos', '--header', 'a=b=c'];
  assert.deepEqual(parseFlags(NUMBERS, given).values, {
    ...{ rate: Number.POSITIVE_INFINITY, share: 1, sizes: [4, 16], eos: false },
    header: ['a=b=c'],
  });
  const refused = (argv: string[], pattern: RegExp) => usage(argv, pattern, NUMBERS);
  refused(['--rate', '0'], /Expected number above 0 or inf for --rate but received "0"/);
  refused(['--rate', ''], /--rate/);
  refused(['--share', 'inf'], /number between 0 and 1 for --share/);
  refused(['--share', '1.1'], /--share/);
  refused(['--sizes', '4,0'], /integer of at least 1 for --sizes but received "0"/);
  refused(['--header', '=x'], /KEY=VALUE for --header/);
  assert.match(flagHelp(NUMBERS), /--\[no-\]eos .*\(default as the model\)/);
  assert.match(flagHelp(NUMBERS), /--sizes N,N,\.\.\. .*\(default 1,2\)/);
});

test('a wrong value names the flag, what was expected and what came', () => {
  usage(['--count', '0'], /Expected integer between 1 and 9 for --count but received "0"/);
  usage(['--count', '1.5'], /--count/);
  usage(['--count', '--loud'], /--count/);
  usage(['--mode', 'medium'], /Expected one of slow, fast for --mode but received "medium"/);
  usage(['--wait', 'long'], /--wait/);
  usage(['--name'], /--name needs a value/);
  usage(['--loud=yes'], /--loud takes no value/);
  usage(['--count', '1', '--count', '2'], /--count is given twice/);
});

test('an unknown flag suggests the nearest one, if any is near', () => {
  usage(['--cuont', '3'], /Unknown flag --cuont; did you mean --count\?/);
  usage(['--no-cahce'], /did you mean --no-cache\?/);
  usage(['--completely-different'], /Unknown flag --completely-different$/);
  usage(['-x'], /Unknown flag -x$/);
});

test('the help has every flag once, in its group, with its default', () => {
  const help = flagHelp(TABLE);
  assert.match(help, /^Group:\n {2}--name TEXT/);
  assert.match(help, /--count N .*A count\. \(default 3\)/);
  assert.match(help, /--tag TEXT .*\(repeatable\)/);
  assert.match(help, /--mode slow\|fast /);
  assert.match(help, /--wait SECONDS .*\(default 1\.5\)/);
  assert.match(help, /Other:\n {2}--no-cache .*Do without the cache\.\n {2}--loud/);
  for (const table of [SERVE_FLAGS, BENCH_SERVE_FLAGS, BENCH_ENGINE_FLAGS]) {
    for (const line of flagHelp(table).split('\n')) assert.ok(line.length <= 100, line);
    for (const name of Object.keys(table)) {
      assert.match(flagHelp(table), new RegExp(`^ {2}--(no-|\\[no-\\])?${name}\\b`, 'm'));
    }
  }
});
