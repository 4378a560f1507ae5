/** One line that says how the run goes: rate, in flight, errors, time to go. */
import { now } from '../engine/api.js';
import type { RequestRecord } from './request-record.js';
import { cell } from './text-table.js';

/** ms between two states of the line. */
const PERIOD = 500;

/** One line that changes on a terminal; where there is none, a line every quarter. On stderr. */
export class LiveLine {
  readonly #total: number;
  readonly #stream: NodeJS.WriteStream;
  readonly #title: string;
  readonly #start = now();
  readonly #timer?: NodeJS.Timeout;
  #sent = 0;
  #done = 0;
  #errors = 0;
  #tokens = 0;
  #last = { time: now(), done: 0, tokens: 0 };

  /** `total`: requests to come, NaN where nobody knows. */
  constructor(total: number, options: { title?: string; stream?: NodeJS.WriteStream } = {}) {
    this.#total = total;
    this.#title = options.title ? `${options.title}: ` : '';
    this.#stream = options.stream ?? process.stderr;
    if (this.#stream.isTTY) this.#timer = setInterval(() => this.#draw(), PERIOD).unref();
  }

  readonly onSend = () => {
    this.#sent++;
  };

  readonly onDone = (record: RequestRecord) => {
    this.#done++;
    this.#tokens += record.tokenTimes.length;
    if (record.error) this.#errors++;
    const quarter = Math.ceil(this.#total / 4);
    if (!this.#stream.isTTY && this.#done % quarter === 0) this.#stream.write(`${this.text()}\n`);
  };

  /** The line as it stands. */
  text(): string {
    const time = now();
    const seconds = Math.max(1e-3, (time - this.#last.time) / 1000);
    const rate = (this.#done - this.#last.done) / seconds;
    const tokens = (this.#tokens - this.#last.tokens) / seconds;
    this.#last = { time, done: this.#done, tokens: this.#tokens };
    const overall = this.#done / Math.max(1e-3, (time - this.#start) / 1000);
    const left = overall > 0 ? cell((this.#total - this.#done) / overall, ' s') : '?';
    const endless = Number.isNaN(this.#total);
    const done = endless ? `${this.#done}` : `${this.#done}/${this.#total}`;
    const toGo = endless ? '' : `, ${left} to go`;
    const errors = this.#errors === 0 ? '' : `, ${this.#errors} FAILED`;
    return `${this.#title}${done}, ${cell(rate)} req/s, ${cell(tokens)} tok/s, ${this.#sent - this.#done} in flight${errors}${toGo}`;
  }

  #draw(): void {
    this.#stream.write(`\r\x1b[K${this.text()}`);
  }

  end(): void {
    clearInterval(this.#timer);
    if (this.#stream.isTTY) this.#stream.write('\r\x1b[K');
  }
}
