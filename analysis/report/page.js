// The page of a report. All text from configurations is set by textContent, or goes through `plain`.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const axes = Object.fromEntries(data.axes.map((axis) => [axis.name, axis]));
const $ = (id) => document.getElementById(id);

const ROWS = 100; // of the table, until more are asked for
const MANY = 1000; // points, beyond which WebGL draws them

let marks = []; // what the controls let through, one a point; see `select`
let held = null; // the point whose mark was clicked
let shown = null; // the point in the panel
let order = { name: "y", descending: true };
let allRows = false;

// --- Text and numbers

// plotly reads a little HTML in its texts; this makes it read none.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function readable(value, axis) {
  if (value === null || value === undefined) return "";
  if (axis && axis.bytes && value >= 1024) {
    const power = Math.min(Math.floor(Math.log2(value) / 10), 4);
    return `${Number((value / 1024 ** power).toPrecision(4))} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
  }
  if (axis && axis.bytes) return `${Number(value.toPrecision(4))} B`;
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const label = (mark) => [data.looks[mark.family].name, mark.label].filter(Boolean).join(", ");

// --- Points: the seeds of each taken together, for the axes and the slice at hand

const range = (values) => {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (!known.length) return null;
  return {
    mean: known.reduce((sum, value) => sum + value, 0) / known.length,
    min: known.reduce((a, b) => Math.min(a, b)),
    max: known.reduce((a, b) => Math.max(a, b)),
  };
};

function select() {
  const { family, task, point } = data.runs;
  const slice = data.slices[$("slice").value];
  const column = (name) => (slice && slice.columns[name]) || data.runs[name];
  const [x, y] = [column($("x").value), column($("y").value)];
  const families = new Set([...$("families").querySelectorAll("input:checked")].map((input) => input.value));
  const rows = new Map();
  point.forEach((number, row) => {
    if (!families.has(family[row]) || ($("task").value && task[row] !== $("task").value)) return;
    if (!rows.has(number)) rows.set(number, []);
    rows.get(number).push(row);
  });
  marks = [...rows].map(([number, seeds]) => {
    const [across, up] = [range(seeds.map((row) => x[row])), range(seeds.map((row) => y[row]))];
    const { family, label, task } = data.runs;
    return {
      point: number, rows: seeds, family: family[seeds[0]], label: label[seeds[0]], task: task[seeds[0]],
      x: across && across.mean, y: up && up.mean, low: up && up.min, high: up && up.max, best: false,
    };
  });
}

// The marks that no other beats: none costs no more, is no worse, and is better in one of the two.
function frontier(drawn) {
  const cost = axes[$("x").value].more ? -1 : 1;
  const quality = axes[$("y").value].more ? 1 : -1;
  const sorted = [...drawn].sort((a, b) => cost * (a.x - b.x) || quality * (b.y - a.y));
  let last = null;
  for (const mark of sorted) {
    if (!last || quality * (mark.y - last.y) > 0) [mark.best, last] = [true, mark];
    else mark.best = mark.x === last.x && mark.y === last.y;
  }
  return sorted.filter((mark) => mark.best);
}

// --- The plot

// A logarithmic axis suits what multiplies, such as bytes and seconds, not shares of one.
function isLogarithmic(name) {
  const { min, max } = range(data.runs[name]);
  return min > 0 && max > 1 && max / min > 5;
}

function axisLayout(side, values) {
  const axis = axes[$(side).value];
  const log = $(`${side}-log`).checked;
  const layout = { title: { text: plain(axis.title) }, type: log ? "log" : "linear", automargin: true, zeroline: false };
  const positive = range(values.filter((value) => value > 0));
  if (axis.bytes && positive) {
    const { min, max } = positive;
    const ticks = [];
    if (log) {
      const [first, last] = [Math.floor(Math.log2(min)), Math.ceil(Math.log2(max))];
      const every = Math.ceil((last - first + 1) / 10);
      for (let power = first; power <= last; power += every) ticks.push(2 ** power);
    } else {
      const step = 2 ** Math.round(Math.log2(max / 6));
      for (let tick = 0; tick <= max + step; tick += step) ticks.push(tick);
    }
    Object.assign(layout, { tickvals: ticks, ticktext: ticks.map((tick) => readable(tick, axis)) });
  }
  return layout;
}

function drawPlot() {
  const drawable = (mark) =>
    mark.x !== null && mark.y !== null && (mark.x > 0 || !$("x-log").checked) && (mark.y > 0 || !$("y-log").checked);
  const drawn = marks.filter(drawable);
  const best = frontier(drawn);
  const type = drawn.length > MANY ? "scattergl" : "scatter";
  const [x, y] = [axes[$("x").value], axes[$("y").value]];
  const line = {
    type: "scatter", mode: "lines", x: best.map((mark) => mark.x), y: best.map((mark) => mark.y),
    line: { shape: "hv", color: "#888", width: 1.5 }, hoverinfo: "skip",
  };
  const families = Object.keys(data.looks).map((family) => {
    const own = drawn.filter((mark) => mark.family === family);
    const { color, symbol } = data.looks[family];
    const several = own.some((mark) => mark.rows.length > 1);
    return {
      type, mode: "markers", customdata: own.map((mark) => mark.point),
      x: own.map((mark) => mark.x), y: own.map((mark) => mark.y),
      text: own.map((mark) => plain(label(mark))),
      hovertemplate: own.map((m) => `%{text}<br>${readable(m.x, x)}, ${readable(m.y, y)}<extra></extra>`),
      marker: { color, symbol, size: drawn.length > MANY ? 7 : 11, line: { color: "#fff", width: drawn.length > MANY ? 0.5 : 1 } },
      error_y: {
        visible: several, type: "data", symmetric: false, color: "#888", thickness: 1, width: 0,
        array: own.map((mark) => mark.high - mark.y), arrayminus: own.map((mark) => mark.y - mark.low),
      },
    };
  });
  const at = drawn.find((mark) => mark.point === held);
  const ring = {
    type: "scatter", mode: "markers", x: at ? [at.x] : [], y: at ? [at.y] : [], hoverinfo: "skip",
    marker: { symbol: "circle-open", size: 20, color: "#888", line: { width: 2 } },
  };
  const layout = {
    showlegend: false, hovermode: "closest", paper_bgcolor: "#0000", plot_bgcolor: "#0000",
    margin: { l: 60, r: 15, t: 10, b: 50 }, font: { family: "system-ui, sans-serif", size: 13 },
    modebar: { bgcolor: "#0000", color: "#999", activecolor: "#777" },
    xaxis: axisLayout("x", drawn.map((mark) => mark.x)), yaxis: axisLayout("y", drawn.map((mark) => mark.y)),
  };
  const modeBarButtons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  Plotly.react("plot", [line, ...families, ring], layout, { responsive: true, displaylogo: false, modeBarButtons });
  const rest = marks.length - drawn.length;
  const slice = data.slices[$("slice").value];
  const on = [$("task-label").hidden ? "" : $("task").value, slice && slice.name].filter(Boolean).join(", ");
  $("status").textContent =
    `${marks.length} points, ${best.length} on the frontier of ${x.more ? "more" : "less"} ${x.title} and ` +
    `${y.more ? "more" : "less"} ${y.title}${on && `; ${on}`}` +
    `${rest ? `; ${rest} not drawn, without a value on these axes` : ""}`;
}

// --- The panel

function drawPanel(point) {
  const mark = marks.find((mark) => mark.point === point);
  shown = mark ? point : null;
  $("hint").hidden = Boolean(mark);
  $("point").hidden = !mark;
  if (!mark) return;
  const [x, y] = [axes[$("x").value], axes[$("y").value]];
  const seeds = mark.rows.length;
  const spread = seeds > 1 && mark.y !== null ? ` (${readable(mark.low, y)} to ${readable(mark.high, y)}, ${seeds} seeds)` : "";
  $("point-name").textContent = label(mark);
  const values = [[x.title, readable(mark.x, x)], [y.title, readable(mark.y, y) + spread]];
  if (mark.best) values.push(["", "on the frontier"]);
  values.push([seeds > 1 ? "runs" : "run", mark.rows.map((row) => data.runs.identity[row]).join(", ")]);
  $("point-values").replaceChildren(...values.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
  const varied = Object.entries(data.settings.varied).map(([name, texts]) => [name, texts[mark.rows[0]]]);
  settingsTable($("point-settings"), varied);
  drawCurve(mark);
}

function settingsTable(table, entries) {
  const rows = entries.filter(([, text]) => text !== null).map(([name, text]) => {
    const row = element("tr");
    row.append(element("th", name, { scope: "row" }), element("td", text));
    return row;
  });
  table.replaceChildren(...rows);
}

function drawCurve(mark) {
  const logs = mark.rows.map((row) => [row, data.curves[data.runs.identity[row]]]).filter(([, log]) => log);
  const name = $("curve-metric").value;
  $("no-curve").hidden = logs.length > 0;
  $("curve").hidden = $("curve-label").hidden = !logs.length;
  if (!logs.length) return;
  const time = "epoch" in logs[0][1] ? "epoch" : "step";
  const traces = logs.map(([row, log]) => ({
    type: "scatter", mode: log[time].length > 1 ? "lines" : "markers", x: log[time], y: log[name] || [],
    name: data.runs.seed ? `seed ${data.runs.seed[row]}` : "", line: { width: 1.5 },
  }));
  const layout = {
    showlegend: false, paper_bgcolor: "#0000", plot_bgcolor: "#0000", margin: { l: 45, r: 8, t: 8, b: 35 },
    font: { family: "system-ui, sans-serif", size: 11 }, xaxis: { title: { text: time }, zeroline: false, automargin: true }, yaxis: { zeroline: false },
  };
  Plotly.react("curve", traces, layout, { responsive: true, displayModeBar: false });
}

// --- The table

const collator = new Intl.Collator(undefined, { numeric: true });

function columns() {
  const column = (name, title, value, axis) => ({ name, title, value, axis });
  const tasks = new Set(data.runs.task).size > 1 ? [column("task", "task", (mark) => mark.task)] : [];
  const [x, y] = [axes[$("x").value], axes[$("y").value]];
  const mean = (name) => (mark) => { const found = range(mark.rows.map((row) => data.runs[name][row])); return found && found.mean; };
  const more = ["accuracy", "state.bytes", "train.learning_rate", "cost.seconds"]
    .filter((name) => axes[name] && ![x.name, y.name].includes(name))
    .map((name) => column(name, axes[name].title, mean(name), axes[name]));
  return [
    column("label", "point", label), ...tasks,
    column("x", x.title, (mark) => mark.x, x), column("y", y.title, (mark) => mark.y, y),
    column("best", "frontier", (mark) => (mark.best ? "yes" : "")), ...more,
    column("seeds", "seeds", (mark) => mark.rows.length, {}),
  ];
}

function drawTable() {
  const all = columns();
  const by = all.find((column) => column.name === order.name) || all[0];
  const sign = order.descending ? -1 : 1;
  const missing = (value) => value === null || value === "";
  const compare = (a, b) => (typeof a === "number" ? a - b : collator.compare(a, b));
  const keyed = marks.map((mark) => [by.value(mark), mark]);
  keyed.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(a, b)));
  const head = element("tr");
  for (const column of all) {
    const sorted = column === by ? (order.descending ? "descending" : "ascending") : "none";
    const cell = element("th", undefined, { scope: "col", "aria-sort": sorted, class: column.axis ? "number" : "" });
    const button = element("button", column.title, { type: "button", "data-column": column.name });
    button.addEventListener("click", () => {
      order = { name: column.name, descending: column === by ? !order.descending : Boolean(column.axis) };
      drawTable();
      $("table").querySelector(`[data-column="${CSS.escape(column.name)}"]`).focus();
    });
    cell.append(button);
    head.append(cell);
  }
  const rows = keyed.slice(0, allRows ? undefined : ROWS).map(([, mark]) => {
    const row = element("tr", undefined, { "aria-selected": mark.point === held, "data-point": mark.point });
    for (const column of all) {
      const cell = element("td", undefined, column.axis ? { class: "number" } : {});
      const value = column.value(mark);
      const text = column.axis ? readable(value, column.axis) : value;
      if (column.name === "label") cell.append(element("button", text, { type: "button" }));
      else cell.textContent = text;
      row.append(cell);
    }
    return row;
  });
  $("table").tHead.replaceChildren(head);
  $("table").tBodies[0].replaceChildren(...rows);
  $("all-rows").hidden = allRows || marks.length <= ROWS;
  $("all-rows").textContent = `show all ${marks.length} rows`;
}

// --- What the reader does

function draw() {
  select();
  drawPlot();
  drawTable();
  drawPanel(held === null ? shown : held);
}

function hold(point) {
  held = point === held ? null : point;
  drawPlot();
  for (const row of $("table").tBodies[0].rows) row.setAttribute("aria-selected", Number(row.dataset.point) === held);
  if (held !== null) drawPanel(held);
}

function walk(event) {
  if (event.key === "Escape" && held !== null) hold(held);
  if (event.key === "Enter" && shown !== null) hold(shown);
  const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const sorted = marks.filter((mark) => mark.x !== null && mark.y !== null).sort((a, b) => a.x - b.x || a.y - b.y);
  if (!way || !sorted.length) return;
  event.preventDefault();
  const at = sorted.findIndex((mark) => mark.point === shown);
  const next = sorted[at < 0 ? 0 : (at + way + sorted.length) % sorted.length];
  held = null;
  hold(next.point);
}

function options(id, entries) {
  $(id).replaceChildren(...entries.map(([value, text]) => element("option", text, { value })));
}

function familyControl(family) {
  const { name, color, path } = data.looks[family];
  const made = element("label");
  const box = element("input", undefined, { type: "checkbox", value: family, checked: "" });
  const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  swatch.setAttribute("viewBox", "-1 -1 2 2");
  shape.setAttribute("d", path);
  shape.setAttribute("fill", color);
  swatch.append(shape);
  made.append(box, swatch, name);
  return made;
}

function start() {
  const names = data.axes.map((axis) => [axis.name, axis.title]);
  options("x", names);
  options("y", names);
  if (axes["state.bytes"]) $("x").value = "state.bytes";
  if (axes.accuracy) $("y").value = "accuracy";
  const tasks = [...new Set(data.runs.task)].sort();
  options("task", tasks.map((task) => [task, task]));
  $("task-label").hidden = tasks.length < 2;
  options("slice", [["", "all"], ...data.slices.map((slice, index) => [index, slice.name])]);
  $("slice-label").hidden = !data.slices.length;
  $("families").append(...Object.keys(data.looks).map(familyControl));
  const logged = new Set(Object.values(data.curves).flatMap((log) => Object.keys(log)));
  const metrics = [...logged].filter((name) => !["epoch", "step"].includes(name));
  options("curve-metric", metrics.map((name) => [name, name]));
  if (metrics.includes("validation_accuracy")) $("curve-metric").value = "validation_accuracy";
  settingsTable($("same-settings"), Object.entries(data.settings.same));

  for (const side of ["x", "y"]) {
    const rescale = () => ($(`${side}-log`).checked = isLogarithmic($(side).value));
    $(side).addEventListener("change", rescale);
    rescale();
  }
  $("controls").addEventListener("change", draw);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("curve-metric").addEventListener("change", () => drawPanel(shown));
  $("all-rows").addEventListener("click", () => { allRows = true; drawTable(); });
  $("table").addEventListener("click", (event) => {
    const row = event.target.closest("tbody button") && event.target.closest("tr");
    if (row) hold(Number(row.dataset.point));
  });
  $("plot").addEventListener("keydown", walk);
  window.addEventListener("beforeprint", () => Plotly.relayout("plot", { width: 680 })); // a page's width
  window.addEventListener("afterprint", () => Plotly.relayout("plot", { width: null, autosize: true }));
  draw();
  $("plot").on("plotly_hover", (event) => held === null && drawPanel(event.points[0].customdata));
  $("plot").on("plotly_click", (event) => hold(event.points[0].customdata));
}

start();
