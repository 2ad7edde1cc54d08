// Two plots: points of any two columns with the front of the best, and lines over epochs.

const SIZE = { width: 760, height: 420, left: 60, right: 15, top: 10, bottom: 45 };
const COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2",
  "#17becf", "#bcbd22", "#7f7f7f"];

function scale(values, from, to, log, least = 0) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 1, high + 1];
  const map = log ? Math.log10 : (value) => value;
  const margin = 0.04 * (map(high) - map(low));
  const [begin, end] = [map(low) - margin, map(high) + margin];
  const place = (value) => from + (to - from) * (map(value) - begin) / (end - begin);
  return { place, ticks: log ? powers(low, high) : steps(low, high, least) };
}

function steps(low, high, least) {
  const rough = Math.max((high - low) / 5, least);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
}

function powers(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high) + 1; p++) {
    for (const m of [1, 2, 5]) found.push(m * 10 ** p);
  }
  const inside = found.filter((value) => value >= low && value <= high);
  return inside.length > 8 ? inside.filter((v) => Number.isInteger(Math.log10(v))) : inside;
}

function frame(x, y, titles) {
  const { width, height, left, right, top, bottom } = SIZE;
  const made = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img",
    "aria-label": `${titles[1]} against ${titles[0]}` });
  for (const tick of x.ticks) {
    const at = x.place(tick);
    made.append(
      drawn("line", { class: "axis", x1: at, x2: at, y1: top, y2: height - bottom }),
      drawn("text", { x: at, y: height - bottom + 16, "text-anchor": "middle" }, brief(tick)));
  }
  for (const tick of y.ticks) {
    const at = y.place(tick);
    made.append(
      drawn("line", { class: "axis", x1: left, x2: width - right, y1: at, y2: at }),
      drawn("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, brief(tick)));
  }
  made.append(
    drawn("text", { x: width / 2, y: height - 8, "text-anchor": "middle" }, titles[0]),
    drawn("text", { x: 14, y: height / 2, "text-anchor": "middle",
      transform: `rotate(-90 14 ${height / 2})` }, titles[1]));
  return made;
}

function brief(value) {
  return value.toLocaleString("en", { maximumSignificantDigits: 3, notation: "compact" });
}

// The rows that no other row beats in both columns; `better` says which end of each is better.
function front(rows, x, y) {
  const sign = (column) => (column.better === "low" ? -1 : 1);
  const [a, b] = [sign(x), sign(y)];
  const ordered = [...rows].sort((one, other) =>
    a * (other[x.key] - one[x.key]) || b * (other[y.key] - one[y.key]));
  let best = -Infinity;
  return ordered.filter((row) => {
    const beats = b * row[y.key] > best;
    if (beats) best = b * row[y.key];
    return beats;
  });
}

function scatter(rows, x, y, log) {
  const { width, height, left, right, top, bottom } = SIZE;
  const usable = (row, column) => typeof row[column.key] === "number" &&
    (!log[column === x ? 0 : 1] || row[column.key] > 0);
  const found = rows.filter((row) => usable(row, x) && usable(row, y));
  if (!found.length) return element("p", { className: "note" }, "no row has both");
  const across = scale(found.map((row) => row[x.key]), left, width - right, log[0]);
  const up = scale(found.map((row) => row[y.key]), height - bottom, top, log[1]);
  const made = frame(across, up, [x.title, y.title]);
  const at = (row) => [across.place(row[x.key]), up.place(row[y.key])];
  const best = new Set(x.better && y.better ? front(found, x, y) : []);
  made.append(drawn("polyline", { class: "front", points: [...best].map(at).join(" ") }));
  for (const row of found) {
    const [cx, cy] = at(row);
    const point = drawn("circle", { class: best.has(row) ? "point best" : "point", cx, cy, r: 5 });
    explain(point, `${row.method}\n${groupOf(row)}\n` +
      [x, y].map((c) => `${c.title}: ${shown(row[c.key], c.digits)}`).join("\n"));
    made.append(point);
  }
  return made;
}

function curves(series, key, title) {
  const { width, height, left, right, top, bottom } = SIZE;
  const values = series.flatMap((one) => one[key]);
  if (!values.length) return element("p", { className: "note" }, "choose a method");
  const longest = Math.max(...series.map((one) => one[key].length));
  const across = scale([1, longest], left, width - right, false, 1);
  const up = scale(values, height - bottom, top, false);
  const made = frame(across, up, ["epoch", title]);
  series.forEach((one, index) => {
    const points = one[key].map((value, i) => `${across.place(i + 1)},${up.place(value)}`);
    const line = drawn("polyline", { points: points.join(" "), fill: "none", "stroke-width": 2,
      stroke: COLOURS[index % COLOURS.length] });
    explain(line, `${one.method}\n${groupOf(one)}\nlast: ${one[key].at(-1).toFixed(3)}`);
    made.append(line);
  });
  return made;
}
