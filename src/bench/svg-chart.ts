/** Line charts as inline SVG, drawn in the page's colours (CSS variables `--ink`, `--c0` ...). */

export interface Series {
  name: string;
  points: readonly (readonly [x: number, y: number])[];
  /** Draws a dot at each point, with this text when pointed at. */
  labels?: readonly string[];
  dashed?: boolean;
}

export interface ChartOptions {
  title: string;
  x: string;
  y: string;
  series: readonly Series[];
  /** A logarithmic x axis. */
  logX?: boolean;
  logY?: boolean;
  /** Upper end of the y axis, where it is not the largest value. */
  maxY?: number;
}

/** Units of the view box; a phone shows them about one to one. */
const WIDTH = 360;
const HEIGHT = 232;
const LEFT = 52;
/** Half of the longest mark, which stands under the end of the axis. */
const RIGHT = 18;
const TOP = 10;
const BOTTOM = 36;

export function lineChart(options: ChartOptions): string {
  const { title, x, y, logX = false, logY = false, maxY } = options;
  const series = options.series.map((one) => ({
    ...one,
    points: one.points.filter(([px, py]) => fits(px, logX) && fits(py, logY)),
  }));
  const all = series.flatMap((one) => one.points);
  if (all.length === 0) return figure(title, '<p class="none">no samples</p>', []);
  const across = axis(
    all.map(([px]) => px),
    logX,
    LEFT,
    WIDTH - RIGHT,
  );
  const up = axis(
    [...all.map(([, py]) => py), ...(maxY ? [maxY] : [])],
    logY,
    HEIGHT - BOTTOM,
    TOP,
  );

  const grid = [
    ...across.ticks.map((tick) => {
      const at = round(across.place(tick));
      return `<path class="grid" d="M${at} ${TOP}V${HEIGHT - BOTTOM}"/><text x="${at}" y="${HEIGHT - BOTTOM + 13}" text-anchor="middle">${tickText(tick)}</text>`;
    }),
    ...up.ticks.map((tick) => {
      const at = round(up.place(tick));
      return `<path class="grid" d="M${LEFT} ${at}H${WIDTH - RIGHT}"/><text x="${LEFT - 5}" y="${at + 3.5}" text-anchor="end">${tickText(tick)}</text>`;
    }),
    `<text class="axis" x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 6}" text-anchor="middle">${escapeHtml(x)}${across.log ? ' (logarithmic)' : ''}</text>`,
    `<text class="axis" transform="translate(11 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">${escapeHtml(y)}</text>`,
  ];
  const lines = series.map((one, index) => {
    const spots = one.points.map(([px, py]) => `${round(across.place(px))} ${round(up.place(py))}`);
    const dots = one.labels?.map((label, i) => {
      if (!spots[i]) return '';
      const [cx, cy] = spots[i].split(' ');
      return `<circle class="s${index % 8}" cx="${cx}" cy="${cy}" r="3.5"><title>${escapeHtml(label)}</title></circle>`;
    });
    const dash = one.dashed ? ' stroke-dasharray="5 4"' : '';
    const path =
      spots.length > 1 ? `<path class="line s${index % 8}"${dash} d="M${spots.join('L')}"/>` : '';
    return path + (dots?.join('') ?? '');
  });
  const svg = `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escapeHtml(title)}">${grid.join('')}${lines.join('')}</svg>`;
  return figure(title, svg, series.length > 1 ? series.map((one) => one.name) : []);
}

function figure(title: string, body: string, names: readonly string[]): string {
  const legend = names.map(
    (name, index) => `<li><i class="b${index % 8}"></i>${escapeHtml(name)}</li>`,
  );
  const list = legend.length === 0 ? '' : `<ul class="legend">${legend.join('')}</ul>`;
  return `<figure><figcaption>${escapeHtml(title)}</figcaption>${body}${list}</figure>`;
}

function fits(value: number, log: boolean): boolean {
  return Number.isFinite(value) && (!log || value > 0);
}

/** Maps values to [from, to] of the view box. */
function axis(values: readonly number[], wantLog: boolean, from: number, to: number) {
  let low = values.reduce((least, value) => Math.min(least, value), Number.POSITIVE_INFINITY);
  let high = values.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
  // Over less than half a decade a logarithmic axis has no marks to read.
  const log = wantLog && high / low > 3;
  if (!log) low = Math.min(0, low);
  if (high <= low) high = low + 1;
  const ticks = log ? logTicks(low, high) : linearTicks(low, high);
  if (!log) high = Math.max(high, ticks[ticks.length - 1]);
  const scale = (value: number) => (log ? Math.log(value) : value);
  const place = (value: number) =>
    from + ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (to - from);
  return { ticks, place, log };
}

/** About five ticks at 1, 2 or 5 times a power of ten. */
function linearTicks(low: number, high: number): number[] {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10]
    .map((factor) => factor * power)
    .find((size) => size >= rough) as number;
  const ticks: number[] = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low: number, high: number): number[] {
  const decades = Math.log10(high / low);
  const factors = decades < 1 ? [1, 2, 3, 5, 7] : decades < 3 ? [1, 2, 5] : [1];
  const ticks: number[] = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

function tickText(value: number): string {
  if (Math.abs(value) >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (Math.abs(value) >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  return String(Number(value.toPrecision(3)));
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

export function escapeHtml(text: string): string {
  return text.replace(
    /[&<>"]/g,
    (char) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[char] as string,
  );
}
