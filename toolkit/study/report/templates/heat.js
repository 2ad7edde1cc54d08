// Tables whose cells are coloured: confusion matrices, and classes against a baseline.

const BLUE = [31, 119, 180];
const RED = [214, 39, 40];

function heat(rows, columns, values, colour, text) {
  const head = element("tr", {}, element("th"), ...columns.map((name) =>
    element("th", { className: "down", scope: "col" }, name)));
  const body = rows.map((name, i) => element("tr", {},
    element("th", { scope: "row" }, name),
    ...columns.map((other, j) => {
      const cell = element("td", {}, text(values[i][j]));
      const [red, green, blue, strength] = colour(values[i][j], i);
      cell.style.background = `rgb(${red} ${green} ${blue} / ${strength})`;
      if (strength > 0.6) cell.style.color = "white";
      explain(cell, `${name} | ${other}: ${text(values[i][j]) || 0}`);
      return cell;
    })));
  return element("div", { className: "scroll" },
    element("table", { className: "heat" }, element("thead", {}, head), element("tbody", {}, ...body)));
}

function confusion(entry) {
  const totals = entry.counts.map((row) => Math.max(1, row.reduce((a, b) => a + b, 0)));
  const names = entry.classes.map((name) => name.replaceAll("_", " "));
  return heat(names, names, entry.counts,
    (count, i) => [...BLUE, count / totals[i]], (count) => (count ? String(count) : ""));
}

function recall(entry) {
  return entry.counts.map((row, i) => 100 * row[i] / Math.max(1, row.reduce((a, b) => a + b, 0)));
}

function classDifferences(entries, baseline) {
  const base = recall(entries.find((entry) => entry.method === baseline));
  const rows = entries.filter((entry) => entry.method !== baseline);
  const values = rows.map((entry) => recall(entry).map((value, i) => value - base[i]));
  const limit = Math.max(1, ...values.flat().map(Math.abs));
  const colour = (value) => [...(value < 0 ? RED : BLUE), Math.abs(value) / limit];
  return heat(rows.map((entry) => entry.method),
    entries[0].classes.map((name) => name.replaceAll("_", " ")), values, colour,
    (value) => value.toFixed(0));
}
