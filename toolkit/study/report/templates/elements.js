// Making elements of the page, and the box that follows the pointer.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && key !== "list") made[key] = value; // `list` can only be read
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function choice(label, options, selected, changed) {
  const made = element("select", { onchange: () => changed(made.value) });
  for (const [value, text] of options) made.append(element("option", { value }, text));
  made.value = selected;
  return element("label", {}, `${label} `, made);
}

function section(title, note) {
  const made = element("section", {}, element("h2", {}, title));
  if (note) made.append(element("p", { className: "note" }, note));
  return made;
}

const hover = element("div", { id: "hover" });

function showAt(event, text) {
  hover.textContent = text;
  hover.style.display = "block";
  hover.style.left = `${Math.min(event.clientX + 12, innerWidth - hover.offsetWidth - 4)}px`;
  hover.style.top = `${Math.min(event.clientY + 12, innerHeight - hover.offsetHeight - 4)}px`;
}

function explain(target, text) {
  target.addEventListener("mousemove", (event) => showAt(event, text));
  target.addEventListener("mouseleave", () => { hover.style.display = "none"; });
}

function shown(value, digits) {
  if (value === null || value === undefined) return "";
  if (digits === null) return String(value);
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString("en", { ...options, roundingMode: "halfEven" }); // as in report.md
}

// What distinguishes a row from others with the same method.
function groupOf(row) {
  return [row.corpus, row.backbone, row.shots === "all" ? "" : `${row.shots} clips per class`]
    .filter(Boolean).join(", ");
}
