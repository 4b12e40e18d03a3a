"use strict";
// The latent browser's controls: search box, selects, checkbox and column chooser.

const HELP_ID = "search-help";

/** The controls of a table; `onType` (debounced) is called after typing, `onChoose` after other changes. */
function makeControls(table, onType, onChoose) {
  const controls = {
    search: el("input", {
      type: "search", id: "search", autocomplete: "off", spellcheck: "false", "aria-describedby": HELP_ID,
    }),
    notes: el("p", {class: "search-notes", role: "status"}),
    verdict: makeSelect(table, "verdict", onChoose),
    category: makeSelect(table, "category", onChoose),
    fires: makeFires(table, onChoose),
    chooser: makeChooser(table, onChoose),
  };
  controls.search.addEventListener("input", onType);
  controls.search.addEventListener("change", onType.flush);
  controls.node = layControls(controls, onChoose);
  return controls;
}

/** Lay the controls out as a form, which Enter submits without leaving the page. */
function layControls(controls, onChoose) {
  const submit = (event) => {
    event.preventDefault();
    onChoose();
  };
  return el("form", {class: "controls", role: "search", "aria-label": "Latents", on: {submit}},
    el("div", {class: "fields"},
      el("div", {class: "field field-search"}, el("label", {for: "search"}, "Search"), controls.search),
      controls.verdict && field("verdict", "Verdict", controls.verdict),
      controls.category && field("category", "Category", controls.category),
      controls.fires && el("label", {class: "check"}, controls.fires, "Only latents that fire")),
    searchHelp(), controls.notes,
    el("div", {class: "under-fields"},
      controls.chooser.node, el("a", {href: href("latents"), class: "reset"}, "Reset the list")));
}

/** What the search box understands. */
function searchHelp() {
  return el("p", {id: HELP_ID, class: "field-help"},
    "Words match what a latent fires on, its annotation, verdict, category and number. ",
    "Comparisons match columns: ", el("code", {}, "nrn>0.9 frequency<0.01"), ".");
}

/** A label above its control. */
function field(id, label, control) {
  return el("div", {class: "field"}, el("label", {for: id}, label), control);
}

/** A select over the choices of a column, or null where the table lacks it. */
function makeSelect(table, name, onChoose) {
  const column = table.byName.get(name);
  if (column?.kind !== "choice") return null;
  const counts = new Array(256).fill(0);
  for (const choice of column.data) counts[choice]++;
  const option = (value, count) =>
    el("option", {value}, `${plainToken(value)} (${countText(count)})`);
  return el("select", {id: name, on: {change: onChoose}},
    el("option", {value: ""}, "any"),
    column.choices.map((choice, i) => counts[i] > 0 && option(choice, counts[i])),
    counts[255] > 0 && option(NO_CHOICE, counts[255]));
}

/** The checkbox for latents that fire, or null where no column says which do. */
function makeFires({byName}, onChoose) {
  return firingColumn(byName) ? el("input", {type: "checkbox", id: "fires", on: {change: onChoose}}) : null;
}

/** The chooser of columns: a box for each, with what the column means and how the search box calls it. */
function makeChooser(table, onChoose) {
  const boxes = new Map();
  const groups = groupColumns(table.columns.filter(({name}) => name !== "latent"));
  const summary = el("summary", {}, "Columns");
  const toDefault = () => {
    for (const box of boxes.values()) box.indeterminate = true;
    onChoose();
  };
  const node = el("details", {class: "chooser"}, summary,
    el("p", {}, el("button", {type: "button", on: {click: toDefault}}, "Show the default columns")),
    el("div", {class: "chooser-groups"}, [...groups].map(([group, columns]) => el("fieldset", {},
      el("legend", {}, plainToken(group)), columns.map((column) => chooserRow(column, boxes, onChoose))))));
  return {node, summary, boxes};
}

/** The columns of each group, in the order in which the groups appear. */
function groupColumns(columns) {
  const groups = new Map();
  for (const column of columns) {
    const group = column.group || "Other";
    groups.set(group, [...(groups.get(group) ?? []), column]);
  }
  return groups;
}

/** One column of the chooser. */
function chooserRow(column, boxes, onChoose) {
  const id = `column-${boxes.size}`;
  const box = el("input", {type: "checkbox", id, "aria-describedby": `${id}-help`, on: {change: onChoose}});
  boxes.set(column.name, box);
  return el("div", {class: "chooser-row"}, box, el("label", {for: id}, plainToken(column.label)),
    el("p", {id: `${id}-help`, class: "field-help"}, plainToken(column.help),
      column.isEmpty && " Empty in this report.",
      isNumeric(column) && [" In searches: ", el("code", {}, plainToken(shortName(column.name)))]));
}

/** The shortest name by which the search box knows a column. */
function shortName(name) {
  return Object.keys(ALIASES).find((alias) => ALIASES[alias] === name) ?? name;
}

/** What the controls say, as parts of a list's state; columns are null where the default ones are wanted. */
function readControls(controls) {
  const boxes = [...controls.chooser.boxes];
  const isDefault = boxes.some(([, box]) => box.indeterminate);
  const columns = ["latent", ...boxes.filter(([, box]) => box.checked).map(([name]) => name)];
  return {
    q: controls.search.value.trim(),
    verdict: controls.verdict?.value ?? "",
    category: controls.category?.value ?? "",
    fires: controls.fires?.checked ?? false,
    columns: isDefault ? null : columns,
  };
}

/** Make the controls show a list's state; what is being typed stays as it is. */
function setControls(controls, list, shown, notes) {
  if (controls.search.value.trim() !== list.q) controls.search.value = list.q;
  if (controls.verdict) controls.verdict.value = list.verdict;
  if (controls.category) controls.category.value = list.category;
  if (controls.fires) controls.fires.checked = list.fires;
  for (const [name, box] of controls.chooser.boxes) {
    box.indeterminate = false;
    box.checked = shown.some((column) => column.name === name);
  }
  controls.chooser.summary.textContent = `Columns (${shown.length} of ${controls.chooser.boxes.size + 1})`;
  const text = notes.length ? `Left out: ${notes.join("; ")}.` : "";
  if (controls.notes.textContent !== text) controls.notes.textContent = text;
}
