/* Charts on uPlot: lines and stacked areas over time, and the bars of batch sizes. A chart's legend is text
   of its own beside the canvas: it shows the newest values, or those under the cursor. */

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  children.forEach((child) => made.append(child)); // a string becomes a text node, never HTML
  return made;
}

const clockTime = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

/* What all charts have: a figure with a title, a plot that fills its width, and a legend. */
class Figure {
  constructor(parent, title, hint) {
    this.plot = element("div", { class: "plot" });
    this.none = element("p", { class: "none", hidden: "" });
    this.legend = element("ul", { class: "legend" });
    const caption = element("figcaption", {}, element("h3", {}, title), element("small", {}, hint));
    this.figure = element("figure", { tabindex: "0", "aria-label": title }, caption, this.plot, this.legend);
    this.plot.append(this.none);
    parent.append(this.figure);
    this.chart = null;
    new ResizeObserver(() => this.fit()).observe(this.plot);
    this.figure.addEventListener("keydown", (event) => this.step(event));
  }

  get size() {
    return { width: Math.max(120, this.plot.clientWidth), height: this.plot.clientHeight };
  }

  fit() {
    const { width, height } = this.size;
    if (this.chart && (this.chart.width !== width || this.chart.height !== height)) this.chart.setSize(this.size);
  }

  /* Arrow keys move the cursor by a point; Escape takes it away. */
  step(event) {
    if (!this.chart || !this.chart.data[0].length) return;
    const last = this.chart.data[0].length - 1;
    const at = this.chart.cursor.idx;
    if (event.key === "Escape") this.chart.setCursor({ left: -10, top: -10 });
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const index = Math.min(last, Math.max(0, (at === null || at === undefined ? last : at) + move));
    this.chart.setCursor({ left: this.chart.valToPos(this.chart.data[0][index], "x"), top: 10 });
  }

  /* Forget the chart, so that the next update makes it anew: the colours have changed. */
  reset() {
    if (this.chart) this.chart.destroy();
    this.chart = null;
  }

  say(nothing) {
    this.none.hidden = !nothing;
    this.none.textContent = nothing || "";
  }

  /* Rows of [mark's class, colour, text, longer text]. */
  explain(rows, when) {
    const items = rows.map(([mark, colour, text, title]) => {
      const sign = element("i", { class: mark });
      sign.style.background = sign.style.borderColor = colour;
      const item = element("li", {}, sign, text);
      if (title) item.title = title;
      return item;
    });
    if (when) items.unshift(element("li", { class: "when" }, when));
    this.legend.replaceChildren(...items);
  }
}

const axis = (more) => ({
  stroke: css("quiet"),
  grid: { stroke: css("grid"), width: 1 },
  ticks: { show: false },
  font: "11px system-ui, sans-serif",
  ...more,
});

/* Series: {key, label, colour (a variable's name), format, title, width, dash, scale: "right"}. */
class TimeChart extends Figure {
  constructor(parent, { title, hint, stacked = false, format = count, nothing = "", right = null, alarm = null, isLog = false }) {
    super(parent, title, hint);
    Object.assign(this, { stacked, format, nothing, right, alarm, isLog, series: [], raw: [] });
  }

  /* Show columns of values, one for each series, over xs in seconds. */
  update(xs, series, columns) {
    const keys = (list) => list.map((each) => each.key).join("\n");
    if (keys(series) !== keys(this.series)) this.reset();
    this.series = series;
    this.raw = columns;
    const isEmpty = !columns.some((column) => column.some((value) => value !== null && (value > 0 || !this.nothing)));
    this.say(isEmpty ? this.nothing || "no values yet" : "");
    const data = [xs, ...(this.stacked ? stackedUp(columns) : this.isLog ? columns.map(aboveZero) : columns)];
    if (this.chart) this.chart.setData(data);
    else this.chart = new uPlot(this.options(), data, this.plot);
    this.relabel();
  }

  options() {
    const axes = [
      axis({ values: (_, ticks) => ticks.map((at) => clockTime(at).slice(0, at % 60 ? 8 : 5)), space: 62, size: 26 }),
      axis({ values: (_, ticks) => ticks.map((value) => shortNumber(value)), size: 44, scale: "y", ...(this.isLog ? POWERS : {}) }),
    ];
    if (this.right) axes.push(axis({ side: 1, scale: "right", values: (_, ticks) => ticks.map(this.right.format), size: 46, grid: { show: false } }));
    return {
      ...this.size,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "time" }, points: { show: !this.stacked, size: 6 } },
      scales: { x: { time: true, range: (_, low, high) => [Math.min(low, high - 60), high] }, y: this.isLog ? { distr: 3, range: (_, low, high) => decades(low, high) } : { range: fromZero }, right: { range: () => [0, this.right ? this.right.max : 1] } },
      axes,
      series: [{}, ...this.series.map((each) => this.drawn(each))],
      hooks: { setCursor: [() => this.relabel()], drawSeries: this.alarm ? [(chart, index) => drawAlarm(chart, index, this.alarm)] : [] },
    };
  }

  drawn(each) {
    const colour = css(each.colour);
    const shown = { scale: each.scale || "y", stroke: colour, width: each.width || 2, dash: each.dash, points: { show: false } };
    // Opaque: a lower layer is painted over the ones that were added up on it.
    return this.stacked ? { ...shown, width: 1, fill: colour } : { ...shown, fill: each.fill ? css(each.fill) : undefined };
  }

  relabel() {
    if (!this.chart) return;
    const hovered = this.chart.cursor.idx;
    const isAt = hovered !== null && hovered !== undefined && this.chart.cursor.left >= 0;
    const rows = this.series.map((each, index) => {
      const column = this.raw[index] || [];
      const value = isAt ? column[hovered] : column[column.length - 1];
      const mark = this.stacked ? "" : each.dash ? "dashed" : "line";
      return [mark, css(each.colour), `${each.label} ${(each.format || this.format)(value)}`, each.title];
    });
    this.explain(this.none.hidden ? rows : [], isAt && this.none.hidden ? clockTime(this.chart.data[0][hovered]) : "");
  }
}

/* Each column added to those after it: the first is the sum of all, and is painted first. */
function stackedUp(columns) {
  const sums = columns.map((column) => column.slice());
  for (let index = sums.length - 2; index >= 0; index--) {
    sums[index] = sums[index].map((value, at) => (value === null ? null : value + (sums[index + 1][at] || 0)));
  }
  return sums;
}

/* A logarithmic axis has no 0. */
const aboveZero = (column) => column.map((value) => (value > 0 ? value : null));

/* Whole powers of ten around what is there. */
function decades(low, high) {
  if (!(low > 0)) return [0.1, 100];
  return [10 ** Math.floor(Math.log10(low)), 10 ** Math.max(Math.ceil(Math.log10(high)), Math.floor(Math.log10(low)) + 1)];
}

const fromZero = (_, low, high) => [0, high > 0 ? high * 1.08 : 1];

/* The ticks of a logarithmic axis. */
const POWERS = {
  splits: (chart) => {
    const [low, high] = [chart.scales.y.min, chart.scales.y.max].map((end) => Math.round(Math.log10(end)));
    return Array.from({ length: high - low + 1 }, (_, step) => 10 ** (low + step));
  },
  filter: (_, ticks) => ticks,
};

function shortNumber(value) {
  if (value >= 1e6) return +(value / 1e6).toFixed(2) + "M";
  if (value >= 1e3) return +(value / 1e3).toFixed(2) + "k";
  return String(+value.toPrecision(3));
}

/* Paint the times at which one series is above another: red ground, from top to bottom. */
function drawAlarm(chart, index, { series, above }) {
  if (index !== series) return;
  const [xs, values, bounds] = [chart.data[0], chart.data[series], chart.data[above]];
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.globalAlpha = 0.16;
  ctx.fillStyle = css("red");
  const limit = bbox.left + bbox.width;
  for (let at = 0; at < xs.length; at++) {
    if (values[at] === null || bounds[at] === null || values[at] <= bounds[at]) continue;
    const left = chart.valToPos(at ? xs[at - 1] : xs[at], "x", true);
    const right = Math.min(limit, chart.valToPos(xs[at], "x", true));
    ctx.fillRect(Math.round(left), bbox.top, Math.round(right) - Math.round(left), bbox.height);
  }
  ctx.restore();
}

/* Shares of batches by their rows: the last minute, and this second. */
class BatchSizes extends Figure {
  constructor(parent) {
    super(parent, "How large batches are", "Share of all batches, by their number of rows. Only 1s under load: nothing is batched.");
  }

  /* bounds: the largest rows of each bucket; minute and second: counts, one more than bounds. */
  update(bounds, minute, second) {
    const last = Math.max(3, ...minute.map((each, index) => (each ? index : 0)));
    const names = bounds.map((bound, index) => (index && bound > bounds[index - 1] + 1 ? `${bounds[index - 1] + 1}–${bound}` : String(bound)));
    names.push("more");
    this.names = names.slice(0, last + 1);
    const share = (counts) => {
      const all = counts.reduce((sum, each) => sum + each, 0);
      return counts.slice(0, last + 1).map((each) => (all ? each / all : 0));
    };
    const data = [this.names.map((_, index) => index), share(minute), share(second)];
    this.say(minute.some(Boolean) ? "" : "no batch ran in the last minute");
    if (this.chart) this.chart.setData(data);
    else this.chart = new uPlot(this.options(), data, this.plot);
    this.relabel();
  }

  options() {
    const bars = (align) => uPlot.paths.bars({ size: [0.42, 40], align });
    const bar = (colour, align) => ({ stroke: css(colour), fill: css(colour), width: 0, paths: bars(align), points: { show: false } });
    return {
      ...this.size,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: { x: { time: false, range: (_, low, high) => [-0.6, high + 0.6] }, y: { range: [0, 1] } },
      axes: [
        axis({ splits: () => this.names.map((_, index) => index), values: (_, ticks) => ticks.map((at) => this.tick(at)), grid: { show: false }, space: 20, size: 26 }),
        axis({ values: (_, ticks) => ticks.map(percent), size: 50 }),
      ],
      series: [{}, bar("grey", -1), bar("blue", 1)],
      hooks: { setCursor: [() => this.relabel()] },
    };
  }

  /* Every second name where they would touch. */
  tick(at) {
    const crowded = this.plot.clientWidth / this.names.length < 56;
    return crowded && at % 2 ? "" : this.names[at];
  }

  relabel() {
    if (!this.chart) return;
    const at = this.chart.cursor.idx;
    const isAt = at !== null && at !== undefined && this.chart.cursor.left >= 0 && at < this.names.length;
    const [, minute, second] = this.chart.data;
    const of = (shares) => (isAt ? " " + percent(shares[at]) : "");
    const rows = [["", css("grey"), "last minute" + of(minute)], ["", css("blue"), "this second" + of(second)]];
    this.explain(this.none.hidden ? rows : [], isAt ? this.names[at] + " rows" : "");
  }
}

/* A small line without axes, of values from 0 up; with an objective, red where above it. */
function sparkline(canvas, values, objective) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const ctx = canvas.getContext("2d");
  ctx.scale(scale, scale);
  // The top is what 19 of 20 stay below, and some: a single peak is cut off and doesn't flatten the rest.
  const known = values.filter((value) => value !== null).sort((a, b) => a - b);
  const usual = known.length ? known[Math.floor(0.95 * (known.length - 1))] : 0;
  const top = Math.max(usual * 1.25, objective ? objective * 1.25 : 0, 1e-9);
  const y = (value) => height - 2 - (height - 4) * Math.min(1, value / top);
  if (objective) {
    ctx.strokeStyle = css("grey");
    ctx.setLineDash([3, 3]);
    ctx.beginPath();
    ctx.moveTo(0, y(objective));
    ctx.lineTo(width, y(objective));
    ctx.stroke();
    ctx.setLineDash([]);
  }
  ctx.lineWidth = 1.5;
  const step = width / Math.max(1, values.length - 1);
  for (let at = 1; at < values.length; at++) {
    if (values[at - 1] === null || values[at] === null) continue;
    ctx.strokeStyle = css(objective && values[at] > objective ? "red" : "blue");
    ctx.beginPath();
    ctx.moveTo((at - 1) * step, y(values[at - 1]));
    ctx.lineTo(at * step, y(values[at]));
    ctx.stroke();
  }
}
