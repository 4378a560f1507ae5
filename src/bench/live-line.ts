/** One line that says how the run goes: rate, in flight, errors, time to go. */
import { now } from '../engine/api.js';
import type { RequestRecord } from './request-record.js';
import { cell } from './text-table.js';

/** ms between two looks at the run; on a terminal the line changes as often. */
const PERIOD = 500;
/** ms. Rates are of the last so long, or of the whole run while it is younger. */
const WINDOW = 5000;
/** ms. A rate over less is chance, and nothing is made of it. */
const MIN_SPAN = 250;
/** ms. Without a terminal, too, a run that comes to no quarter says this often that it lives. */
const LONGEST_SILENCE = 10_000;

export interface LiveLineOptions {
  title?: string;
  stream?: NodeJS.WriteStream;
  /** Of an open loop, when requests are due: ms from the start, ascending. */
  times?: readonly number[];
}

/** What had been done at a moment. */
interface Look {
  time: number;
  done: number;
  tokens: number;
}

/** One line that changes on a terminal; where there is none, a line every quarter. On stderr. */
export class LiveLine {
  readonly #total: number;
  readonly #stream: NodeJS.WriteStream;
  readonly #title: string;
  readonly #times?: readonly number[];
  readonly #start = now();
  readonly #timer: NodeJS.Timeout;
  #sent = 0;
  #done = 0;
  #errors = 0;
  #tokens = 0;
  #due = 0;
  #written = this.#start;
  /** Of the last WINDOW ms, and one look from before it. */
  #looks: Look[] = [{ time: this.#start, done: 0, tokens: 0 }];

  /** `total`: requests to come, NaN where nobody knows. */
  constructor(total: number, { title, stream = process.stderr, times }: LiveLineOptions = {}) {
    this.#total = total;
    this.#stream = stream;
    this.#title = title ? `${title}: ` : '';
    this.#times = times;
    this.#timer = setInterval(() => this.#look(), PERIOD).unref();
  }

  readonly onSend = () => {
    this.#sent++;
  };

  readonly onTokens = (count: number) => {
    this.#tokens += count;
  };

  readonly onDone = (record: RequestRecord) => {
    this.#done++;
    if (record.error) this.#errors++;
    const quarter = Math.ceil(this.#total / 4);
    if (!this.#stream.isTTY && this.#done % quarter === 0) this.#write();
  };

  /** The line as it stands. */
  text(): string {
    const time = now();
    const since = this.#looks[0];
    const seconds = time - since.time < MIN_SPAN ? Number.NaN : (time - since.time) / 1000;
    const rate = (this.#done - since.done) / seconds;
    const tokens = (this.#tokens - since.tokens) / seconds;
    const endless = Number.isNaN(this.#total);
    const done = endless ? `${this.#done}` : `${this.#done}/${this.#total}`;
    const errors = this.#errors === 0 ? '' : `, ${this.#errors} FAILED`;
    const toGo = endless ? '' : `, ${this.#toGo(time, rate)} to go`;
    return `${this.#title}${done}, ${cell(rate)} req/s, ${cell(tokens)} tok/s, ${this.#sent - this.#done} in flight${errors}${toGo}`;
  }

  /** `rate`: requests a second of late. */
  #toGo(time: number, rate: number): string {
    const elapsed = (time - this.#start) / 1000;
    if (this.#done === this.#total) return '0 s';
    if (elapsed * 1000 < MIN_SPAN) return '?';
    let seconds = ((this.#total - this.#done) * elapsed) / this.#done;
    if (this.#times) {
      // Those to come keep to their times; only those due wait for the server.
      while (this.#times[this.#due] <= elapsed * 1000) this.#due++;
      const waiting = this.#due - this.#done;
      seconds = Math.max(0, (this.#times.at(-1) ?? 0) / 1000 - elapsed);
      if (waiting > 0) seconds += waiting / rate;
    }
    return Number.isFinite(seconds) ? cell(seconds, ' s') : '?';
  }

  #look(): void {
    const time = now();
    this.#looks.push({ time, done: this.#done, tokens: this.#tokens });
    while (time - this.#looks[1].time >= WINDOW) this.#looks.shift();
    if (this.#stream.isTTY) this.#stream.write(`\r\x1b[K${this.text()}`);
    else if (time - this.#written >= LONGEST_SILENCE) this.#write();
  }

  #write(): void {
    this.#written = now();
    this.#stream.write(`${this.text()}\n`);
  }

  end(): void {
    clearInterval(this.#timer);
    if (this.#stream.isTTY) this.#stream.write('\r\x1b[K');
  }
}
