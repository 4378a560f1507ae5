import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  bytes,
  choice,
  flagHelp,
  integer,
  parseFlags,
  seconds,
  string,
  strings,
  toggle,
  UsageError,
} from '../../src/cli/flags.js';
import { SERVE_FLAGS } from '../../src/cli/serve-flags.js';

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

function usage(argv: string[], pattern: RegExp): void {
  assert.throws(
    () => parseFlags(TABLE, argv),
    (error) => error instanceof UsageError && pattern.test(error.message),
    argv.join(' '),
  );
}

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
  for (const line of flagHelp(SERVE_FLAGS).split('\n')) assert.ok(line.length <= 100, line);
  for (const name of Object.keys(SERVE_FLAGS)) {
    assert.match(flagHelp(SERVE_FLAGS), new RegExp(`^ {2}--(no-)?${name}\\b`, 'm'));
  }
});
