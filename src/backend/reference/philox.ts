/**
 * Philox4x32-10, a counter-based random generator: Salmon, Moraes, Dror, Shaw, "Parallel Random
 * Numbers: As Easy as 1, 2, 3", SC 2011. No state: the draw is a function of key and counter, so a
 * sequence's tokens do not depend on what else is in the batch.
 */

export type Words = readonly [number, number, number, number];

/** Ten rounds over the counter under the key; all words unsigned 32-bit. */
export function philox4x32(counter: Words, key: readonly [number, number]): Words {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const a = multiply(0xd2511f53, c0);
    const b = multiply(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(b.high ^ c1 ^ k0) >>> 0, b.low, (a.high ^ c3 ^ k1) >>> 0, a.low];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** A number in [0, 1) with 53 random bits from the first two words. */
export function uniform([z0, z1]: Words): number {
  return ((z0 >>> 5) * 2 ** 26 + (z1 >>> 6)) * 2 ** -53;
}

function multiply(a: number, b: number): { high: number; low: number } {
  const product = BigInt(a) * BigInt(b);
  return { high: Number(product >> 32n), low: Number(product & 0xffffffffn) };
}
