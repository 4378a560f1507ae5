/** A view of a value in this step: some rows, a range of columns. */
export class Matrix {
  readonly rows: number;
  readonly width: number;
  readonly #data: Float32Array;
  readonly #stride: number;
  readonly #offset: number;

  constructor(data: Float32Array, rows: number, stride: number, offset: number, width: number) {
    this.#data = data;
    this.rows = rows;
    this.#stride = stride;
    this.#offset = offset;
    this.width = width;
  }

  /** Row `t`, to read or write in place. */
  row(t: number): Float32Array {
    const start = t * this.#stride + this.#offset;
    return this.#data.subarray(start, start + this.width);
  }
}
