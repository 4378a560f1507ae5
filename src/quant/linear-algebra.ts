/** The dense float64 algebra that GPTQ needs. Matrices are row-major `[n, n]`. */

/**
 * Adds `xᵀ x` of `rows` rows of `x` to the upper triangle of `sum`. Row r of x begins at
 * `r * stride`.
 */
export function addOuterProducts(
  sum: Float64Array,
  x: Float32Array,
  rows: number,
  n: number,
  stride: number,
): void {
  // Four rows at a time: the sums are read and written a quarter as often.
  for (let row = 0; row < rows; row += 4) {
    const count = Math.min(4, rows - row);
    const at = (k: number) => (k < count ? (row + k) * stride : -1);
    const [a, b, c, d] = [at(0), at(1), at(2), at(3)];
    for (let i = 0; i < n; i++) {
      const ai = x[a + i];
      const bi = b < 0 ? 0 : x[b + i];
      const ci = c < 0 ? 0 : x[c + i];
      const di = d < 0 ? 0 : x[d + i];
      const line = i * n;
      const [bb, cc, dd] = [Math.max(b, 0), Math.max(c, 0), Math.max(d, 0)];
      for (let j = i; j < n; j++) {
        sum[line + j] += ai * x[a + j] + bi * x[bb + j] + ci * x[cc + j] + di * x[dd + j];
      }
    }
  }
}

/**
 * The upper triangular U with `h⁻¹ = Uᵀ U`, in place of `h`, whose upper triangle is given;
 * undefined if `h` is not positive definite. First `h = V Vᵀ` with V upper triangular, from the last
 * column on; then U is the inverse of V.
 */
export function inverseFactor(h: Float64Array, n: number): Float64Array | undefined {
  for (let j = n - 1; j >= 0; j--) {
    let pivot = h[j * n + j];
    for (let k = j + 1; k < n; k++) pivot -= h[j * n + k] ** 2;
    if (!(pivot > 0)) return undefined;
    const root = Math.sqrt(pivot);
    h[j * n + j] = root;
    for (let i = 0; i < j; i++) {
      let sum = h[i * n + j];
      for (let k = j + 1; k < n; k++) sum -= h[i * n + k] * h[j * n + k];
      h[i * n + j] = sum / root;
    }
  }
  return invertUpper(h, n);
}

/** Row by row from the last: row i of the inverse is made of the rows below it. */
function invertUpper(v: Float64Array, n: number): Float64Array {
  const line = new Float64Array(n);
  for (let i = n - 1; i >= 0; i--) {
    line.fill(0);
    for (let k = i + 1; k < n; k++) {
      const factor = v[i * n + k];
      if (factor === 0) continue;
      for (let j = k; j < n; j++) line[j] -= factor * v[k * n + j];
    }
    const pivot = v[i * n + i];
    v[i * n + i] = 1 / pivot;
    for (let j = i + 1; j < n; j++) v[i * n + j] = line[j] / pivot;
    for (let j = 0; j < i; j++) v[i * n + j] = 0;
  }
  return v;
}
