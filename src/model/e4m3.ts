/**
 * 8-bit floats (OCP "8-bit Floating Point Specification", 2023): 1 sign, 4 exponent, 3 fraction bits,
 * bias 7, no infinities.
 */

/** The number that each byte stands for. */
export const FLOAT_OF_E4M3: Float32Array = Float32Array.from({ length: 256 }, (_, byte) => {
  const sign = byte & 0x80 ? -1 : 1;
  const exponent = (byte >> 3) & 15;
  const fraction = byte & 7;
  if (exponent === 15 && fraction === 7) return Number.NaN;
  if (exponent === 0) return sign * fraction * 2 ** -9;
  return sign * (8 + fraction) * 2 ** (exponent - 10);
});
