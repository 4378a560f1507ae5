/** The 16-bit floats as numbers and back, rounding to nearest even. */
import type { DType } from './weights.js';

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);

export function bfloat16ToFloat(bits: number): number {
  word[0] = bits << 16;
  return float[0];
}

export function float16ToFloat(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return (bits & 0x8000 ? -fraction : fraction) * 2 ** -24;
  // The exponent's bias is 15, that of float32 127; all ones are infinity or NaN in both.
  const widened = exponent === 31 ? 255 : exponent + 112;
  word[0] = ((bits & 0x8000) << 16) | (widened << 23) | (fraction << 13);
  return float[0];
}

/** All of them at once. */
export function halvesToFloats(
  halves: Uint16Array,
  dtype: Exclude<DType, 'float32'>,
): Float32Array<ArrayBuffer> {
  const floats = new Float32Array(halves.length);
  const widen = dtype === 'bfloat16' ? bfloat16ToFloat : float16ToFloat;
  for (let i = 0; i < halves.length; i++) floats[i] = widen(halves[i]);
  return floats;
}

/** `value` rounded to what `dtype` can hold. */
export function roundTo(dtype: DType, value: number): number {
  if (dtype === 'bfloat16') return roundToBfloat16(value);
  if (dtype === 'float16') return roundToFloat16(value);
  return Math.fround(value);
}

function roundToBfloat16(value: number): number {
  float[0] = value;
  if (!Number.isFinite(float[0])) return float[0];
  const lowest = (word[0] >>> 16) & 1;
  word[0] = (word[0] + 0x7fff + lowest) & 0xffff0000;
  return float[0];
}

function roundToFloat16(value: number): number {
  const size = Math.abs(value);
  if (!(size < Infinity) || size === 0) return value;
  // The spacing of float16 numbers around the value: 2^-24 below 2^-14, else 2^-10 of the exponent.
  const spacing = 2 ** (Math.max(-14, Math.floor(Math.log2(size))) - 10);
  const steps = size / spacing;
  let rounded = Math.floor(steps);
  const rest = steps - rounded;
  if (rest > 0.5 || (rest === 0.5 && rounded % 2 === 1)) rounded++;
  const result = rounded * spacing;
  return Math.sign(value) * (result > 65504 ? Infinity : result);
}
