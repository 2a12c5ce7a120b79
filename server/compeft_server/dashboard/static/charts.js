// Draws the overview's picture from the tables below it, with zoom (drag; double click for all) and values on hover. Without this script the
// picture that the server drew stays, and the tables.
"use strict";

const BYTES = ["B", "kB", "MB", "GB", "TB"];
let drawn = [];
let zoom = null;

function bytes(value) {
  if (value === null || value === undefined) return "–";
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < BYTES.length - 1) { value /= 1000; unit += 1; }
  return `${unit ? Number(value.toPrecision(3)) : Math.round(value)} ${BYTES[unit]}`;
}

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function times(ticks) {
  const span = ticks[ticks.length - 1] - ticks[0];
  const fields = span > 2 * 86400 ? { day: "numeric", month: "short" } : span < 600 ? { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false } : { hour: "2-digit", minute: "2-digit", hour12: false };
  const format = new Intl.DateTimeFormat(undefined, fields);
  return ticks.map((tick) => format.format(new Date(1000 * tick)));
}

function cells(table) {
  const rows = [...table.tBodies[0].rows];
  const columns = rows.length ? [...rows[0].querySelectorAll("td")].map((_, i) => rows.map((row) => Number(row.querySelectorAll("td")[i].dataset.value))) : [];
  return [rows.map((row) => Number(row.dataset.at) / 1000), ...columns];
}

function axes(format) {
  const line = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  return [{ ...line, space: 90, values: (_, ticks) => times(ticks) }, { ...line, size: 74, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))) }];
}

function options(host, height, series, format, range) {
  return {
    width: host.clientWidth, height, series, axes: axes(format),
    scales: { x: { time: true, range: (_, low, high) => zoom || range || [low, high] } },
    cursor: { sync: { key: "time" }, drag: { x: true, y: false } },
    hooks: { setSelect: [(plot) => zoomTo(plot)] },
  };
}

function zoomTo(plot) {
  if (plot.select.width < 4) return;
  zoom = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")];
  plot.setSelect({ left: 0, width: 0 }, false);
  drawCharts();
}

function bytesChart(host, table) {
  const [middles, dense, up, down] = cells(table);
  const range = [Number(table.dataset.first) / 1000, Number(table.dataset.last) / 1000];
  const slot = (range[1] - range[0]) / 48;
  const within = zoom || range;
  const width = Math.max(2, (host.clientWidth - 90) * slot / (within[1] - within[0]) * 0.76);
  const bars = uPlot.paths.bars({ size: [1, width, 2] });
  const wire = up.map((value, i) => value + down[i]);
  const label = (_, value) => bytes(value);
  const series = [{ label: "time", value: (_, value) => (value === null ? "–" : FORMAT.format(new Date(1000 * value))) }, { label: "dense bf16 would have moved", fill: colour("--line"), paths: bars, points: { show: false }, value: label }];
  series.push({ label: "on the wire", fill: colour("--synced"), paths: bars, points: { show: false }, value: label });
  if (table.dataset.scale === "linear") series.push({ label: "deliveries, part of these", fill: colour("--dense"), paths: bars, points: { show: false }, value: label });
  const made = options(host, 260, series, bytes, range);
  const smallest = Math.min(...wire.filter((value) => value > 0), ...dense.filter((value) => value > 0));
  made.scales.y = table.dataset.scale === "log" ? { distr: 3, range: (_, __, high) => [10 ** Math.floor(Math.log10(smallest)), 10 ** Math.ceil(Math.log10(high))] } : { range: (_, __, high) => [0, high * 1.05] };
  const data = [middles, dense, wire, down].slice(0, series.length);
  return new uPlot(made, table.dataset.scale === "log" ? data.map((column, i) => (i ? column.map((value) => value || null) : column)) : data, host);
}

function metricChart(host, tables, range) {
  const moments = [...new Set(tables.flatMap((table) => cells(table)[0]))].sort((a, b) => a - b);
  const colours = ["--synced", "--dense", "--base", "--text"];
  const percent = tables[0].dataset.name.startsWith("accuracy");
  const format = (value) => (value === null || value === undefined ? "–" : percent ? `${(100 * value).toFixed(1)} %` : String(Number(value.toPrecision(4))));
  const series = [{ label: "time", value: (_, value) => (value === null ? "–" : FORMAT.format(new Date(1000 * value))) }];
  const data = [moments];
  tables.forEach((table, i) => {
    const [at, values] = cells(table);
    const known = new Map(at.map((time, j) => [time, values[j]]));
    data.push(moments.map((time) => known.get(time) ?? null));
    series.push({ label: table.dataset.name, stroke: colour(colours[i % 4]), width: 2, spanGaps: true, points: { size: 6 }, value: (_, value) => format(value) });
  });
  if (tables[0].dataset.base !== undefined) {
    data.push(moments.map(() => Number(tables[0].dataset.base)));
    series.push({ label: "base only", stroke: colour("--base"), width: 2, dash: [2, 5], points: { show: false }, value: (_, value) => format(value) });
  }
  return new uPlot(options(host, 150, series, format, range), data, host);
}

function drawCharts() {
  drawn.forEach((plot) => plot.destroy());
  drawn = [];
  const host = document.getElementById("time-chart");
  const table = document.querySelector("table[data-chart=bytes]");
  if (host === null || table === null || !table.tBodies[0].rows.length) return;
  host.hidden = false;
  host.replaceChildren();
  document.querySelector("figure.timeline").classList.add("replaced");
  const range = [Number(table.dataset.first) / 1000, Number(table.dataset.last) / 1000];
  drawn.push(bytesChart(host, table));
  const metrics = [...document.querySelectorAll("table[data-chart=metric]")];
  if (metrics.length) drawn.push(metricChart(host, metrics, range));
  for (const plot of drawn) plot.over.addEventListener("dblclick", () => { zoom = null; drawCharts(); });
}

drawCharts();
document.body.addEventListener("htmx:afterSettle", drawCharts);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
let settling;
addEventListener("resize", () => { clearTimeout(settling); settling = setTimeout(drawCharts, 150); });
