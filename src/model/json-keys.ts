/** Finds a key that stands twice in one object of a JSON text: JSON.parse silently keeps the last. */

/** The first duplicate key in valid JSON `text`, at any depth; undefined if there is none. */
export function duplicateKey(text: string): string | undefined {
  const objects: Set<string>[] = [];
  const colon = /\s*:/y;
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (char === '{') objects.push(new Set());
    else if (char === '}') objects.pop();
    else if (char === '"') {
      const end = closingQuote(text, at);
      colon.lastIndex = end + 1;
      if (colon.test(text)) {
        const key = JSON.parse(text.slice(at, end + 1)) as string;
        const keys = objects.at(-1)!;
        if (keys.has(key)) return key;
        keys.add(key);
      }
      at = end;
    }
  }
  return undefined;
}

function closingQuote(text: string, open: number): number {
  let at = open + 1;
  while (text[at] !== '"') at += text[at] === '\\' ? 2 : 1;
  return at;
}
