// Tables that sort by a click on a heading and filter by words and by group.

function makeTable(table, baseline, filtered = () => {}) {
  const state = { key: null, down: false, words: [], groups: {} };
  const body = element("tbody");
  const heads = table.columns.map((column) => {
    const button = element("button", { title: column.about, onclick: () => sortBy(column) }, column.title);
    return element("th", { scope: "col", "data-key": column.key }, button);
  });

  function sortBy(column) {
    const best = column.better === "low" || column.digits === null ? false : true;
    state.down = state.key === column.key ? !state.down : best;
    state.key = column.key;
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[table.columns.indexOf(column)]
      .setAttribute("aria-sort", state.down ? "descending" : "ascending");
    update();
  }

  function compare(one, other) {
    const [a, b] = [one[state.key] ?? null, other[state.key] ?? null];
    if (a === null || b === null) return (a === null) - (b === null); // empty cells stay below
    const order = typeof a === "number" ? a - b : String(a).localeCompare(b, "en", { numeric: true });
    return state.down ? -order : order;
  }

  function wanted(row) {
    const text = Object.values(row).join(" ").toLowerCase();
    return state.words.every((word) => text.includes(word)) &&
      Object.entries(state.groups).every(([key, value]) => value === "" || row[key] === value);
  }

  function kind(column, row) {
    if (column.digits !== null) return "number";
    return String(row[column.key]).length > 40 ? "long" : "";
  }

  function update() {
    const rows = table.rows.filter(wanted);
    if (state.key !== null) rows.sort(compare);
    body.replaceChildren(...rows.map((row) => element(
      "tr", { className: row.method === baseline ? "baseline" : "" },
      ...table.columns.map((column) => element(
        "td", { className: kind(column, row) }, shown(row[column.key], column.digits))))));
    filtered(rows);
  }

  const search = element("input", {
    type: "search", placeholder: "filter", "aria-label": `filter ${table.title}`,
    oninput: () => { state.words = search.value.toLowerCase().split(/\s+/).filter(Boolean); update(); },
  });
  const controls = element("div", { className: "controls" }, search);
  for (const key of ["corpus", "backbone", "shots"]) {
    const values = [...new Set(table.rows.map((row) => row[key]))].filter((v) => v !== undefined);
    if (values.length < 2) continue;
    const options = [["", "all"], ...values.map((value) => [value, value])];
    controls.append(choice(key, options, "", (value) => { state.groups[key] = value; update(); }));
  }
  update();
  return element("div", {}, controls, element("div", { className: "scroll" },
    element("table", { id: table.key }, element("thead", {}, element("tr", {}, ...heads)), body)));
}
