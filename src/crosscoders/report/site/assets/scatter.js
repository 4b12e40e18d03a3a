"use strict";
// A scatter chart on a canvas, for as many points as there are latents: groups differ in color and marker,
// pointing at a point names it, a click opens it. Axes are SVG; the canvas is redrawn when the theme changes.

const POINT_REACH = 14;
const themedCanvases = new Map();
let isThemeWatched = false;

/** Redraw a canvas whenever the theme changes, as long as it is on the page. */
function onThemeChange(canvas, redraw) {
  if (!isThemeWatched) watchTheme();
  for (const node of themedCanvases.keys()) if (!node.isConnected) themedCanvases.delete(node);
  themedCanvases.set(canvas, redraw);
}

/** Listen once for a change of theme. */
function watchTheme() {
  isThemeWatched = true;
  const redrawAll = () => {
    for (const [node, redraw] of themedCanvases) if (node.isConnected) redraw();
  };
  new MutationObserver(redrawAll).observe(document.documentElement, {attributeFilter: ["data-theme"]});
}

/** The colors that classes of pages.css give to groups just now. */
function groupColors(box, groups) {
  const probe = el("span", {hidden: true});
  box.append(probe);
  const colors = groups.map(({tone}) => {
    probe.className = tone;
    return getComputedStyle(probe).color;
  });
  probe.remove();
  return colors;
}

/** One marker as a small picture, drawn once and stamped at each point; smaller and fainter for a crowd. */
function markerStamp({shape, size: full}, color, {ratio, n}) {
  const crowding = Math.min(1, Math.max(0.45, (1000 / n) ** 0.35));
  const size = full * crowding;
  const side = Math.ceil((size * 3 + 3) * ratio);
  const stamp = document.createElement("canvas");
  stamp.width = stamp.height = side;
  const context = stamp.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, side / 2, side / 2);
  const path = new Path2D(markerPath(shape, size));
  const isOpen = markerClass(shape) !== "marker";
  context.lineWidth = 1.3;
  context.globalAlpha = 0.35 + 0.5 * crowding;
  context.strokeStyle = context.fillStyle = color;
  if (isOpen) context.stroke(path);
  else context.fill(path);
  return stamp;
}

/** Draw all points, group by group: a later group lies above an earlier one. */
function drawPoints(canvas, {frame, points, groups, colors, width, height}) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.setProperty("width", `${width}px`);
  canvas.style.setProperty("height", `${height}px`);
  const context = canvas.getContext("2d");
  groups.forEach((group, g) => {
    const stamp = markerStamp(group, colors[g], {ratio, n: points.rowsOf[g].length});
    const pixel = (value) => value * ratio - stamp.width / 2;
    for (const i of points.rowsOf[g]) {
      context.drawImage(stamp, pixel(frame.x.at(points.x[i])), pixel(frame.y.at(points.y[i])));
    }
  });
}

/** Rows of each group with both values defined, and how many rows lack one. */
function groupRows({x, y, group}, groups) {
  const rowsOf = groups.map(() => []);
  let n = 0;
  for (let i = 0; i < x.length; i++) {
    if (!isDrawable(x[i]) || !isDrawable(y[i])) continue;
    const g = group(i);
    if (g < 0) continue;
    rowsOf[g].push(i);
    n++;
  }
  return {x, y, rowsOf, n};
}

/** The row of the point nearest to a place in pixels, within reach; -1 where none is. */
function nearestPoint({x, y}, {points, frame}) {
  let best = -1, least = POINT_REACH ** 2;
  for (const rows of points.rowsOf) {
    for (const i of rows) {
      const dx = frame.x.at(points.x[i]) - x;
      if (dx > POINT_REACH || dx < -POINT_REACH) continue;
      const far = dx * dx + (frame.y.at(points.y[i]) - y) ** 2;
      if (far <= least) [best, least] = [i, far];
    }
  }
  return best;
}

/** The box that names the point that is pointed at, with a ring around it: {show(row), row}. */
function pointPointer(plot, describe) {
  const ring = el("span", {class: "point-ring", hidden: true});
  const tip = el("div", {class: "tip", hidden: true});
  plot.append(ring, tip);
  const pointer = {row: -1};
  pointer.show = (row, frame, points) => {
    pointer.row = row;
    ring.hidden = tip.hidden = row < 0;
    plot.classList.toggle("is-on-point", row >= 0);
    if (row < 0) return;
    const at = {x: frame.x.at(points.x[row]), y: frame.y.at(points.y[row])};
    tip.replaceChildren(...describe(row));
    place(ring, at);
    const isRight = at.x > plot.clientWidth / 2, isLow = at.y > plot.clientHeight / 2;
    tip.classList.toggle("is-left", isRight);
    tip.classList.toggle("is-above", isLow);
    place(tip, at);
  };
  return pointer;
}

/** Put a box at a place within its parent, in pixels. */
function place(node, {x, y}) {
  node.style.setProperty("left", `${x}px`);
  node.style.setProperty("top", `${y}px`);
}

/** Name the nearest point under the pointer; a click opens it, on a touch screen the second tap does. */
function followPointer(plot, pointer, {view, open}) {
  const at = (event) => {
    const box = plot.getBoundingClientRect();
    return {x: event.clientX - box.left, y: event.clientY - box.top};
  };
  const show = (row) => pointer.show(row, view.frame, view.points);
  plot.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch" && view.frame) show(nearestPoint(at(event), view));
  });
  plot.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") show(-1);
  });
  plot.addEventListener("click", (event) => {
    const row = view.frame ? nearestPoint(at(event), view) : -1;
    if (row >= 0 && (event.pointerType !== "touch" || row === pointer.row)) open(row);
    else show(row);
  });
}

/** Legend of the groups that have points. */
function groupLegend(groups, points) {
  const size = {width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true"};
  const key = ({tone, shape}) => svg("svg", {class: `key ${tone}`, ...size},
    svg("path", {class: markerClass(shape), d: markerPath(shape, 4.2)}));
  const entry = (group, g) => points.rowsOf[g].length > 0 && el("li", null, key(group),
    group.href ? el("a", {href: group.href}, group.label) : group.label,
    el("span", {class: "muted"}, countText(points.rowsOf[g].length)));
  return el("ul", {class: "legend"}, groups.map(entry).reverse());
}

/**
 * A scatter chart: `x` and `y` are {label, low, high, values}, `groups` {label, tone, shape, size, href},
 * `group(row)` the number of a row's group or -1, `describe(row)` the nodes of its box, `open(row)` a click.
 */
function scatterChart({title, x, y, groups, group, describe, open, label, note, height = CHART_HEIGHT}) {
  const points = groupRows({x: x.values, y: y.values, group}, groups);
  if (!points.n) return absent(`${title}: no latent has both values.`);
  const plot = el("div", {class: "chart-plot scatter"});
  const canvas = el("canvas", {"aria-hidden": "true"});
  const pointer = pointPointer(plot, describe);
  const view = {points, frame: null};
  const paint = (width) => drawPoints(canvas,
    {frame: view.frame, points, groups, colors: groupColors(plot, groups), width, height});
  responsive(plot, (width) => {
    view.frame = chartFrame({width, height, x, y, label});
    for (const old of plot.querySelectorAll(".chart-svg")) old.remove();
    plot.prepend(view.frame.node, canvas);
    paint(width);
    pointer.show(-1);
    onThemeChange(canvas, () => paint(Math.floor(plot.clientWidth)));
  });
  followPointer(plot, pointer, {view, open});
  return chartFigure({title, unit: y.label, plot, legend: groupLegend(groups, points), note});
}
