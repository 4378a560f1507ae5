/** What `--help` shows of a table of flags. */
import type { Flag, FlagTable } from './flag.js';

const HELP_COLUMN = 36;
const HELP_WIDTH = 100;

/** The flags as help text, by group, in the order of the table. */
export function flagHelp(table: FlagTable): string {
  const groups = new Map<string, string[]>();
  for (const [name, flag] of Object.entries(table)) {
    const lines = groups.get(flag.group) ?? [];
    groups.set(flag.group, lines);
    const head = `  --${shownName(name, flag)}${flag.placeholder ? ` ${flag.placeholder}` : ''}`;
    const notes = [
      ...(flag.shownDefault ? [`default ${flag.shownDefault}`] : []),
      ...(flag.multiple ? ['repeatable'] : []),
    ];
    const text = flag.help + (notes.length > 0 ? ` (${notes.join('; ')})` : '');
    const [first, ...rest] = wrap(text, HELP_WIDTH - HELP_COLUMN);
    if (head.length < HELP_COLUMN) lines.push(head.padEnd(HELP_COLUMN) + first);
    else lines.push(head, ' '.repeat(HELP_COLUMN) + first);
    for (const line of rest) lines.push(' '.repeat(HELP_COLUMN) + line);
  }
  return [...groups].map(([group, lines]) => `${group}:\n${lines.join('\n')}`).join('\n\n');
}

/** Of a toggle, the form that changes something. */
function shownName(name: string, flag: Flag<unknown>): string {
  if (flag.placeholder !== undefined || flag.default === false) return name;
  return flag.default === true ? `no-${name}` : `[no-]${name}`;
}

function wrap(text: string, width: number): string[] {
  const lines = [''];
  for (const word of text.split(' ')) {
    const last = lines.length - 1;
    if (lines[last] === '') lines[last] = word;
    else if (lines[last].length + 1 + word.length <= width) lines[last] += ` ${word}`;
    else lines.push(word);
  }
  return lines;
}
