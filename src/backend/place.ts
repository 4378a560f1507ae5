/** Places in one block of memory for matrices that are not all needed at the same time. */

export interface Lifetime {
  readonly bytes: number;
  /** Of the operations, the first and last that need it. */
  readonly first: number;
  readonly last: number;
}

/** Offsets in the order of `lifetimes`: two that overlap in time do not overlap in place. */
export function place(lifetimes: readonly Lifetime[]): { offsets: number[]; bytes: number } {
  const offsets = new Map<Lifetime, number>();
  let bytes = 0;
  // Large ones first, each at the lowest place free for all of its life.
  for (const life of [...lifetimes].sort((a, b) => b.bytes - a.bytes)) {
    const neighbours = [...offsets]
      .filter(([other]) => other.first <= life.last && life.first <= other.last)
      .sort(([, a], [, b]) => a - b);
    let offset = 0;
    for (const [other, start] of neighbours) {
      if (offset + life.bytes <= start) break;
      offset = Math.max(offset, start + other.bytes);
    }
    offsets.set(life, offset);
    bytes = Math.max(bytes, offset + life.bytes);
  }
  return { offsets: lifetimes.map((life) => offsets.get(life) as number), bytes };
}
