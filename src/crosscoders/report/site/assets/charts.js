"use strict";
// Line charts and histograms as SVG, colored by classes of pages.css: a change of theme needs no redraw.
// Series differ in color, dash and marker; every chart has a sentence for a label and its numbers as a table.

const CHART_DASHES = ["", "7 4", "2 3", "9 3 2 3", "4 2", "12 4"];
const CHART_MARKERS = ["circle", "square", "triangle", "diamond", "cross", "plus", "down", "ring", "dot"];
const CHART_HEIGHT = 240;
const TABLE_ROWS_AT_MOST = 200;

/** Path of a marker of radius r around the origin, for SVG and for Path2D alike. */
function markerPath(shape, r) {
  const a = r * 0.9;
  const round = (s) => `M${-s} 0a${s} ${s} 0 1 0 ${2 * s} 0a${s} ${s} 0 1 0 ${-2 * s} 0Z`;
  const paths = {
    circle: round(r),
    ring: round(r),
    dot: round(r * 0.6),
    square: `M${-a} ${-a}H${a}V${a}H${-a}Z`,
    triangle: `M0 ${-r * 1.2}L${r * 1.1} ${r * 0.8}H${-r * 1.1}Z`,
    down: `M0 ${r * 1.2}L${r * 1.1} ${-r * 0.8}H${-r * 1.1}Z`,
    diamond: `M0 ${-r * 1.4}L${r * 1.2} 0L0 ${r * 1.4}L${-r * 1.2} 0Z`,
    cross: `M${-a} ${-a}L${a} ${a}M${-a} ${a}L${a} ${-a}`,
    plus: `M0 ${-r * 1.2}V${r * 1.2}M${-r * 1.2} 0H${r * 1.2}`,
  };
  return paths[shape];
}

/** Class of a marker: those made of lines are not filled. */
function markerClass(shape) {
  return ["cross", "plus", "ring"].includes(shape) ? "marker open" : "marker";
}

/** Round numbers that cover low..high in about `count` steps. */
function niceTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw * 0.999) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

/** Powers of ten within low..high, thinned to about `count`; with 2 and 5 between where there are few. */
function logTicks(low, high, count) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(1, Math.ceil((last - first) / count));
  const between = last - first <= 2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let p = first; p <= last; p += every) for (const m of between) ticks.push(m * 10 ** p);
  return ticks.filter((v) => v >= low * 0.999 && v <= high * 1.001);
}

/** Short text of a number on an axis: "12k", "0.25", "1e-6". */
function tickText(value) {
  const size = Math.abs(value), sign = value < 0 ? "\u2212" : "";
  if (size === 0) return "0";
  if (size >= 1e9 || size < 1e-4) return sign + size.toExponential(1).replace(".0e", "e").replace("e+", "e");
  if (size >= 1e6) return `${sign}${Number((size / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${sign}${Number((size / 1e3).toPrecision(3))}k`;
  return sign + String(Number(size.toPrecision(3)));
}

/** A scale from values to pixels: {at(value), ticks}. */
function makeScale({low, high, log}, {from, to, count}) {
  const f = log ? Math.log10 : (v) => v;
  const start = f(low);
  const span = f(high) - start || 1;
  return {
    at: (value) => from + ((f(value) - start) / span) * (to - from),
    ticks: log ? logTicks(low, high, count) : niceTicks(low, high, count),
  };
}

/** Whether a value can be drawn: finite, and above 0 on a log axis. */
function isDrawable(value, log = false) {
  return value !== null && Number.isFinite(value) && (!log || value > 0);
}

/** {low, high, log} of the values that can be drawn, never empty; null where there are none. */
function extent(lists, {log = false} = {}) {
  let [low, high] = [Infinity, -Infinity];
  for (const list of lists) {
    for (const v of list) {
      if (!isDrawable(v, log)) continue;
      if (v < low) low = v;
      if (v > high) high = v;
    }
  }
  if (low > high) return null;
  if (low < high) return {low, high, log};
  const half = (Math.abs(low) || 1) / 2;
  return log ? {low: low / 2, high: high * 2, log} : {low: low - half, high: high + half, log};
}

/** Axes with ticks, grid and labels; `x` and `y` are {low, high, log, label}. Marks go into `plot`. */
function chartFrame({width, height, x, y, label}) {
  const box = {left: 52, right: width - 14, top: 12, bottom: height - 42};
  const [columns, rows] = [width / 100, height / 48].map((n) => Math.max(3, Math.floor(n)));
  const xs = makeScale(x, {from: box.left, to: box.right, count: columns});
  const ys = makeScale(y, {from: box.bottom, to: box.top, count: rows});
  const plot = svg("g");
  const middle = {x: (box.left + box.right) / 2, y: height - 7, "text-anchor": "middle"};
  const size = {width, height, viewBox: `0 0 ${width} ${height}`};
  const node = svg("svg", {class: "chart-svg", role: "img", "aria-label": label, ...size},
    ys.ticks.map((tick) => yTick(tick, ys.at(tick), box)),
    xs.ticks.map((tick) => xTick(tick, xs.at(tick), box)),
    svg("line", {class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom}),
    svg("text", {class: "axis-label", ...middle}, x.label), plot);
  return {node, plot, x: xs, y: ys, box};
}

/** A tick of the vertical axis with its grid line. */
function yTick(tick, at, box) {
  return [svg("line", {class: "grid", x1: box.left, x2: box.right, y1: at, y2: at}),
    svg("text", {class: "tick", x: box.left - 7, y: at + 4, "text-anchor": "end"}, tickText(tick))];
}

/** A tick of the horizontal axis. */
function xTick(tick, at, box) {
  return [svg("line", {class: "axis", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4}),
    svg("text", {class: "tick", x: at, y: box.bottom + 17, "text-anchor": "middle"}, tickText(tick))];
}

/** Call draw(width) once the box has a width, and again whenever that changes. */
function responsive(box, draw) {
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(box.clientWidth);
    if (width === 0 || width === drawn) return;
    drawn = width;
    draw(width);
  }).observe(box);
}

/** A figure around a chart: title and legend above, note and numbers below. */
function chartFigure({title, unit, plot, legend, note, numbers}) {
  const table = () => numbersTable(numbers.headers, numbers.rows(), {caption: `${title}: numbers`});
  return el("figure", {class: "chart"},
    el("figcaption", null,
      el("span", {class: "chart-title"}, title), unit && el("span", {class: "chart-unit"}, unit)),
    legend, plot,
    note && el("p", {class: "chart-note"}, note),
    numbers && lazyDetails(numbers.summary ?? "The numbers", table));
}

/** Dash, marker and color class of the i-th series of a chart. */
function seriesStyle(series, i) {
  return {
    tone: `tone-${series.tone ?? `mark-${i % CHART_MARKERS.length}`}`,
    shape: CHART_MARKERS[i % CHART_MARKERS.length],
    dash: CHART_DASHES[i % CHART_DASHES.length],
  };
}

/** A small drawing of a series' line and marker, for legends. */
function seriesKey({tone, shape, dash}) {
  const size = {width: 30, height: 12, viewBox: "0 0 30 12", "aria-hidden": "true"};
  return svg("svg", {class: `key ${tone}`, ...size},
    svg("line", {class: "series", x1: 1, x2: 29, y1: 6, y2: 6, "stroke-dasharray": dash}),
    svg("path", {class: markerClass(shape), d: markerPath(shape, 4), transform: "translate(15 6)"}));
}

/** Each series' first and last defined value in words. */
function seriesInWords(series, x) {
  return series.map(({label, values}) => {
    const first = values.findIndex((v) => isDrawable(v)), last = values.findLastIndex((v) => isDrawable(v));
    if (first < 0) return `${label} undefined`;
    const [from, to] = [first, last].map((i) => `${tickText(values[i])} at ${tickText(x[i])}`);
    return `${label} from ${from} to ${to}`;
  }).join("; ");
}

/** One path for the defined stretches of a series; a gap where a value is undefined. */
function seriesPath(values, x, {frame, log}) {
  let path = "", isOn = false;
  values.forEach((v, i) => {
    const drawable = isDrawable(v, log);
    if (drawable) path += `${isOn ? "L" : "M"}${frame.x.at(x[i]).toFixed(1)} ${frame.y.at(v).toFixed(1)}`;
    isOn = drawable;
  });
  return path;
}

/** One series: its line and about eight markers along it, set off from those of the other series. */
function drawSeries(series, i, {frame, x, log}) {
  const {tone, shape, dash} = seriesStyle(series, i);
  const every = Math.max(1, Math.round(series.values.length / 8));
  const offset = Math.round((i * every) / 3) % every;
  const markers = series.values.map((v, at) => {
    if (at % every !== offset || !isDrawable(v, log)) return null;
    const transform = `translate(${frame.x.at(x[at]).toFixed(1)} ${frame.y.at(v).toFixed(1)})`;
    return svg("path", {class: markerClass(shape), d: markerPath(shape, 3.4), transform});
  });
  const d = seriesPath(series.values, x, {frame, log});
  return svg("g", {class: tone}, svg("path", {class: "series", d, "stroke-dasharray": dash}), markers);
}

/** The numbers of a line chart as a table, thinned where there are very many. */
function seriesNumbers(x, series) {
  const every = Math.ceil(x.values.length / TABLE_ROWS_AT_MOST), last = x.values.length - 1;
  const row = (i) => [countText(x.values[i]), ...series.map((s) => formatNumber(s.values[i]))];
  const shown = [...x.values.keys()].filter((i) => i % every === 0 || i === last);
  return {
    summary: every > 1 ? `The numbers (1 of ${every} points)` : "The numbers",
    headers: [x.label, ...series.map((s) => s.label)],
    rows: () => shown.map(row),
  };
}

/** A line chart; series are {label, values, tone}, `x` is {label, values}, `log` is for the vertical axis. */
function lineChart({title, unit, x, series, log = false, label, note}) {
  const range = extent(series.map((s) => s.values), {log}), along = extent([x.values]);
  if (!range || !along) return absent(`${title}: no value is defined.`);
  const said = label ?? `${title} by ${x.label}: ${seriesInWords(series, x.values)}.`;
  const plot = el("div", {class: "chart-plot"});
  responsive(plot, (width) => {
    const axes = {x: {...along, label: x.label}, y: range, label: said};
    const frame = chartFrame({width, height: CHART_HEIGHT, ...axes});
    append(frame.plot, series.map((one, i) => drawSeries(one, i, {frame, x: x.values, log})));
    plot.replaceChildren(frame.node);
  });
  const key = (one, i) => el("li", null, seriesKey(seriesStyle(one, i)), one.label);
  const legend = series.length > 1 && el("ul", {class: "legend"}, series.map(key));
  return chartFigure({title, unit, plot, legend, note, numbers: seriesNumbers(x, series)});
}

/** A histogram of counts in equal bins of {label, low, high}; empty bins stay blank, marks are {at, text}. */
function histogramChart({title, x, counts, log = true, label, note, marks = [], height = CHART_HEIGHT}) {
  const most = Math.max(...counts), width = (x.high - x.low) / counts.length;
  if (!(most > 0)) return absent(`${title}: there is nothing to count.`);
  const edge = (i) => tickText(x.low + i * width);
  const said = label ?? histogramInWords({title, counts, edge});
  const plot = el("div", {class: "chart-plot"});
  const y = log ? {low: 0.5, high: Math.max(2, most * 1.3), log} : {low: 0, high: most * 1.05};
  responsive(plot, (pixels) => {
    const frame = chartFrame({width: pixels, height, x, y, label: said});
    const d = barsPath(counts, (i) => frame.x.at(x.low + i * width), frame);
    append(frame.plot, [svg("path", {class: "bars", d}), marks.map((mark) => drawMark(frame, mark))]);
    plot.replaceChildren(frame.node);
  });
  const rows = () => counts.map((n, i) => [edge(i), edge(i + 1), countText(n)]);
  const unit = log ? "count, logarithmic" : "count";
  return chartFigure({title, unit, plot, note, numbers: {headers: ["from", "to", "count"], rows}});
}

/** A histogram in a sentence. */
function histogramInWords({title, counts, edge}) {
  const most = Math.max(...counts), peak = counts.indexOf(most);
  return `${title}: values from ${edge(0)} to ${edge(counts.length)}; the fullest bin, ` +
    `${edge(peak)} to ${edge(peak + 1)}, holds ${countText(most)}.`;
}

/** All bars of a histogram as one path; side(i) is the pixel of the i-th edge. */
function barsPath(counts, side, {y, box}) {
  const at = (value) => value.toFixed(2);
  const bar = (n, i) => `M${at(side(i))} ${box.bottom}V${at(y.at(n))}H${at(side(i + 1))}V${box.bottom}Z`;
  return counts.map((n, i) => (n > 0 ? bar(n, i) : "")).join("");
}

/** A dashed vertical line at {at} with a word at its top. */
function drawMark(frame, {at, text}) {
  const x = frame.x.at(at), isLate = x > (frame.box.left + frame.box.right) / 2;
  const place = {x: isLate ? x - 4 : x + 4, y: frame.box.top + 10, "text-anchor": isLate ? "end" : "start"};
  return [svg("line", {class: "mark", x1: x, x2: x, y1: frame.box.top, y2: frame.box.bottom}),
    svg("text", {class: "mark-text", ...place}, text)];
}
