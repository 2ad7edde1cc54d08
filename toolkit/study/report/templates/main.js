// The page, from top to bottom. Everything comes from the JSON that the report put into it.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main");
document.body.append(hover);

function head() {
  main.append(element("h1", {}, data.study));
  for (const text of [data.question, data.summary, data.conclusion, data.limits]) {
    if (text) main.append(element("p", {}, text));
  }
}

function methodTables() {
  for (const table of data.tables) {
    const made = section(table.title, table.note);
    const numbers = table.columns.filter((column) => column.digits !== null);
    const known = (key, other) => numbers.find((column) => column.key === key) ?? other;
    const plot = element("div", { id: "pareto" });
    const state = { rows: [], x: known("trained", numbers[0]), y: known("score", numbers[0]), log: [true, false] };
    const redraw = () => plot.replaceChildren(scatter(state.rows, state.x, state.y, state.log));
    if (table.key !== "methods") {
      made.append(makeTable(table, data.baseline));
      main.append(made);
      continue;
    }
    made.append(makeTable(table, data.baseline, (rows) => { state.rows = rows; redraw(); }));
    main.append(made, picture(numbers, state, redraw, plot));
  }
}

function picture(numbers, state, redraw, plot) {
  const made = section("Any two columns", "Red: no other method in the picture is better in both. " +
    "The filter of the table above applies here too.");
  const options = numbers.map((column) => [column.key, column.title]);
  const controls = element("div", { className: "controls" });
  ["x", "y"].forEach((axis, i) => {
    controls.append(
      choice(axis, options, state[axis].key, (key) => {
        state[axis] = numbers.find((column) => column.key === key);
        redraw();
      }),
      element("label", {}, element("input", { type: "checkbox", checked: state.log[i],
        onchange: (event) => { state.log[i] = event.target.checked; redraw(); } }), ` log ${axis}`));
  });
  made.append(controls, plot);
  return made;
}

function epochs() {
  const made = section("Over the epochs", "Means over folds and seeds, on the validation folds that " +
    `chose the epoch: this is not test ${data.metric}.`);
  const names = { valid_score: `validation ${data.metric}`, valid_loss: "validation loss", train_loss: "training loss" };
  const plot = element("div", { id: "epochs" });
  const state = { key: "valid_score", chosen: new Set(data.curves.slice(0, 6)) };
  const redraw = () => plot.replaceChildren(curves([...state.chosen], state.key, names[state.key]));
  const boxes = data.curves.map((one) => element("label", {}, element("input", {
    type: "checkbox", checked: state.chosen.has(one),
    onchange: (event) => { state.chosen[event.target.checked ? "add" : "delete"](one); redraw(); },
  }), ` ${one.method} (${groupOf(one)})`));
  made.append(choice("show", Object.entries(names), state.key, (key) => { state.key = key; redraw(); }),
    plot, element("div", { className: "choices" }, ...boxes));
  main.append(made);
  redraw();
}

function classes() {
  const groups = [...new Set(data.confusions.map(groupOf))];
  const of = (group) => data.confusions.filter((entry) => groupOf(entry) === group);
  const made = section("Confusion", "Counts over all folds and seeds; rows are true classes.");
  const matrix = element("div", { id: "confusion" });
  const differences = element("div", { id: "classes" });
  const named = data.confusions.map((entry, i) => [String(i), `${entry.method} (${groupOf(entry)})`]);
  const show = (i) => matrix.replaceChildren(confusion(data.confusions[i]));
  made.append(choice("method", named, "0", show), matrix);
  const other = section("Classes", "Recall of each method per class, minus that of another method, in percentage points. " +
    "Each cell rests on few clips: differences of a few points are within chance.");
  const state = { group: groups[0], base: null };
  const base = element("span");
  const redraw = () => differences.replaceChildren(classDifferences(of(state.group), state.base));
  const regroup = (group) => {
    const methods = of(group).map((entry) => entry.method);
    state.group = group;
    state.base = methods.includes(data.baseline) ? data.baseline : methods[0];
    const options = methods.map((method) => [method, method]);
    base.replaceChildren(choice("than", options, state.base, (m) => { state.base = m; redraw(); }));
    redraw();
  };
  other.append(element("div", { className: "controls" },
    choice("in", groups.map((group) => [group, group]), groups[0], regroup), base), differences);
  main.append(made, other);
  show(0);
  regroup(groups[0]);
}

function pictures() {
  const made = section("Pictures", "The folder figures/ beside this page holds them as PNG and SVG.");
  made.append(element("div", { className: "pictures" }, ...data.pictures.map((one) =>
    element("figure", {}, element("img", { src: one.source, alt: one.title, loading: "lazy" }),
      element("figcaption", {}, one.title)))));
  main.append(made);
}

function runs() {
  const made = section("Runs", "Settings that all runs share, and the settings of each run.");
  const shared = element("details", {}, element("summary", {}, "settings and versions that all share"),
    element("pre", {}, lines(data.shared)));
  const detail = element("pre", { id: "run" }, "choose a run");
  const show = (name) => {
    const run = data.runs.find((one) => one.name === name);
    detail.textContent = `${run.command}\n\n${lines(run.own)}${run.log ? `\n${run.log}` : ""}`;
  };
  const list = element("input", { list: "run-names", placeholder: "a run", size: 60,
    "aria-label": "run", onchange: () => show(list.value) });
  const names = element("datalist", { id: "run-names" },
    ...data.runs.map((run) => element("option", { value: run.name })));
  made.append(shared, list, names, detail);
  main.append(made);
}

function lines(values) {
  return Object.entries(values).map(([key, value]) => `${key}: ${JSON.stringify(value)}`).join("\n");
}

head();
methodTables();
if (data.curves.length) epochs();
if (data.confusions.length) classes();
if (data.pictures.length) pictures();
runs();
document.body.dataset.ready = "yes";
