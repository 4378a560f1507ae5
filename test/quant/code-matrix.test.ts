import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { IntegerStorage } from '../../src/model/weights.js';
import { codeMatrix, decodeMatrix, prepareHessian } from '../../src/quant/code-matrix.js';
import { addOuterProducts, inverseFactor } from '../../src/quant/linear-algebra.js';
import { randomSource } from '../helpers/random.js';

const random = randomSource(5);
const normal = () => random() + random() + random() + random() - 2;
const floats = (count: number) => Float32Array.from({ length: count }, normal);

/** Inputs whose columns go together, so that there is something for GPTQ to use. */
function correlated(rows: number, width: number): Float32Array {
  const x = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    const shared = [normal(), normal(), normal()];
    for (let k = 0; k < width; k++) {
      x[row * width + k] = 0.3 * normal() + shared[k % 3] * (1 + (k % 5));
    }
  }
  return x;
}

test('The inverse factor reproduces the inverse of a positive definite matrix', () => {
  const n = 37;
  const x = floats(90 * n);
  const sum = new Float64Array(n * n);
  addOuterProducts(sum, x, 90, n, n);
  const full = (i: number, j: number) => sum[Math.min(i, j) * n + Math.max(i, j)];
  const direct = (i: number, j: number) => {
    let total = 0;
    for (let row = 0; row < 90; row++) total += x[row * n + i] * x[row * n + j];
    return total;
  };
  assert.ok(Math.abs(full(3, 20) - direct(3, 20)) < 1e-4);
  const h = Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => full(i, j)));
  const u = inverseFactor(sum, n)!;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      // (h Uᵀ U)[i][j] is 1 on the diagonal, 0 beside it.
      let entry = 0;
      for (let k = 0; k < n; k++) {
        let inverse = 0;
        for (let m = 0; m <= Math.min(k, j); m++) inverse += u[m * n + k] * u[m * n + j];
        entry += h[i][k] * inverse;
      }
      assert.ok(Math.abs(entry - (i === j ? 1 : 0)) < 1e-8, `${i}, ${j}: ${entry}`);
    }
  }
  assert.equal(inverseFactor(new Float64Array(4), 2), undefined);
});

for (const [bits, group, symmetric] of [
  [8, 0, true],
  [4, 32, true],
  [4, 64, false],
] as const) {
  const storage: IntegerStorage = { kind: 'integer', bits, group, symmetric };
  const name = `${bits} bits, groups of ${group}, ${symmetric ? 'symmetric' : 'asymmetric'}`;

  test(`Rounding to nearest loses at most half a step: ${name}`, () => {
    const [rows, width] = [6, 100];
    const values = floats(rows * width);
    const coded = codeMatrix(values, rows, width, storage);
    const decoded = decodeMatrix(coded, rows, width, storage);
    const size = group || width;
    const groups = Math.ceil(width / size);
    values.forEach((value, i) => {
      const scale = coded.scales[Math.floor(i / width) * groups + Math.floor((i % width) / size)];
      // A scale that was rounded down leaves the largest weight a little outside.
      const most = scale * 0.5 + Math.abs(value) * 2 ** -8;
      assert.ok(Math.abs(value - decoded[i]) <= most, `${value} became ${decoded[i]}`);
    });
  });

  test(`GPTQ changes the outputs on its inputs less than rounding does: ${name}`, () => {
    const [rows, width, count] = [8, 96, 400];
    const values = floats(rows * width);
    const x = correlated(count, width);
    const sum = new Float64Array(width * width);
    addOuterProducts(sum, x, count, width, width);
    const loss = (decoded: Float32Array) => {
      let total = 0;
      for (let t = 0; t < count; t++) {
        for (let row = 0; row < rows; row++) {
          let error = 0;
          for (let k = 0; k < width; k++) {
            error += x[t * width + k] * (decoded[row * width + k] - values[row * width + k]);
          }
          total += error ** 2;
        }
      }
      return total;
    };
    const nearest = codeMatrix(values, rows, width, storage);
    const rounded = loss(decodeMatrix(nearest, rows, width, storage));
    const hessian = prepareHessian(sum, width);
    assert.ok(hessian);
    const coded = codeMatrix(values, rows, width, storage, hessian);
    const calibrated = loss(decodeMatrix(coded, rows, width, storage));
    assert.ok(calibrated < 0.5 * rounded, `${calibrated} against ${rounded}`);
  });
}

test('Inputs that are all zero give no Hessian', () => {
  assert.equal(prepareHessian(new Float64Array(9), 3), undefined);
});
