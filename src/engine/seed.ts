/** Seeds of requests and of their choices: 64 bits, the key of the sampler's generator. */
import { randomBytes } from 'node:crypto';

/** What a request without a seed gets. */
export function randomSeed(): bigint {
  return randomBytes(8).readBigUInt64LE();
}

/**
 * The seed of choice `index`. Choice 0 has the request's own, so that it gives the same tokens
 * whatever `n` is; choice i has output i of SplitMix64 started there (Steele, Lea, Flood, "Fast
 * splittable pseudorandom number generators", OOPSLA 2014), so that neighbours share nothing.
 */
export function choiceSeed(seed: bigint, index: number): bigint {
  if (index === 0) return BigInt.asUintN(64, seed);
  let z = BigInt.asUintN(64, seed + BigInt(index) * 0x9e3779b97f4a7c15n);
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}
