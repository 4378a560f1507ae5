/**
 * Packed words to one code a byte, `[out, in]`: 4 bits as 0 .. 15, 8 bits less 128. A large checkpoint
 * has billions of codes, so all four of a word's half (or word) are written at once. Byte order is
 * little-endian, as in the files.
 */

/** Of 8-bit codes in a word: flipping the highest bit of each takes 128 away. */
const LESS_128 = 0x80808080 | 0;

/** Four codes of 4 bits, the lowest first, as four bytes. */
function spread(half: number): number {
  const pairs = (half | (half << 8)) & 0x00ff00ff;
  return (pairs | (pairs << 4)) & 0x0f0f0f0f;
}

/** `words` [rows, ceil(width / p)], p codes of consecutive inputs in a word, lowest bits first. */
export function unpackRows(
  words: Int32Array,
  rows: number,
  width: number,
  bits: 4 | 8,
): Int8Array<ArrayBuffer> {
  const quads = new Int32Array((words.length * 8) / bits);
  if (bits === 8) {
    for (let i = 0; i < words.length; i++) quads[i] = words[i] ^ LESS_128;
  } else {
    for (let i = 0; i < words.length; i++) {
      quads[2 * i] = spread(words[i] & 0xffff);
      quads[2 * i + 1] = spread(words[i] >>> 16);
    }
  }
  const codes = new Int8Array(quads.buffer);
  const padded = codes.length / rows;
  if (padded === width) return codes;
  const cut = new Int8Array(rows * width);
  for (let row = 0; row < rows; row++) {
    cut.set(codes.subarray(row * padded, row * padded + width), row * width);
  }
  return cut;
}

/** Outputs whose words are read together: they are neighbours in memory. */
const TILE = 16;

/** `words` [in / p, out], p codes of consecutive inputs in a word; `width` is a multiple of p. */
export function unpackInputs(
  words: Int32Array,
  rows: number,
  width: number,
  bits: 4 | 8,
): Int8Array<ArrayBuffer> {
  const quads = new Int32Array((rows * width) / 4);
  const stride = width / 4;
  const count = words.length / rows;
  for (let first = 0; first < rows; first += TILE) {
    const end = Math.min(rows, first + TILE);
    for (let k = 0; k < count; k++) {
      for (let row = first; row < end; row++) {
        const word = words[k * rows + row];
        if (bits === 8) {
          quads[row * stride + k] = word ^ LESS_128;
        } else {
          quads[row * stride + 2 * k] = spread(word & 0xffff);
          quads[row * stride + 2 * k + 1] = spread(word >>> 16);
        }
      }
    }
  }
  return new Int8Array(quads.buffer);
}

/** Where output i of eight is in a word of AutoAWQ, in halves of a byte. */
export const AWQ_PLACE = [0, 4, 1, 5, 2, 6, 3, 7];

/** `words` [in, out / 8], eight outputs in a word; `width` is a multiple of 4. */
export function unpackOutputs(
  words: Int32Array,
  rows: number,
  width: number,
): Int8Array<ArrayBuffer> {
  const quads = new Int32Array((rows * width) / 4);
  const stride = width / 4;
  const across = rows / 8;
  for (let first = 0; first < across; first += TILE) {
    const end = Math.min(across, first + TILE);
    for (let k = 0; k < stride; k++) {
      for (let eight = first; eight < end; eight++) {
        const at = 4 * k * across + eight;
        const a = words[at];
        const b = words[at + across];
        const c = words[at + 2 * across];
        const d = words[at + 3 * across];
        for (let i = 0; i < 8; i++) {
          const shift = 4 * AWQ_PLACE[i];
          quads[(8 * eight + i) * stride + k] =
            ((a >>> shift) & 15) |
            (((b >>> shift) & 15) << 8) |
            (((c >>> shift) & 15) << 16) |
            (((d >>> shift) & 15) << 24);
        }
      }
    }
  }
  return new Int8Array(quads.buffer);
}

/** Column c of the result is column `columns[c]`; changes `codes`, `[rows, columns]`. */
export function orderColumns(codes: Int8Array, columns: Int32Array): void {
  const width = columns.length;
  const row = new Int8Array(width);
  for (let at = 0; at < codes.length; at += width) {
    row.set(codes.subarray(at, at + width));
    for (let k = 0; k < width; k++) codes[at + k] = row[columns[k]];
  }
}
