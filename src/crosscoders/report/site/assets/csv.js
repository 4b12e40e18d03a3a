"use strict";
// The rows of a list as a CSV file, made in the browser.

const CSV_HELP = "All rows of this list with all columns. Text that looks like a formula gets a ' in front.";

/** Download a list's rows with all columns of the table. */
function downloadRows({table, rows}) {
  const url = URL.createObjectURL(new Blob([csvText(table, rows)], {type: "text/csv;charset=utf-8"}));
  const link = el("a", {href: url, download: "latents.csv"});
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** The table's rows as CSV: names in the first line, undefined cells empty. */
function csvText({columns}, rows) {
  const lines = [columns.map(({name}) => csvString(name)).join(",")];
  for (const row of rows) lines.push(columns.map((column) => csvCell(column, row)).join(","));
  return lines.join("\r\n") + "\r\n";
}

/** One cell: a number in full, or text with its escapes, a bar between tokens. */
function csvCell(column, row) {
  if (!isNumeric(column)) return csvString(textOf(column, row));
  const value = column.data[row];
  return Number.isNaN(value) ? "" : shortestFloat(value);
}

/** The shortest decimal that reads back as the same float32. */
function shortestFloat(value) {
  for (const digits of [6, 7, 8]) {
    const text = String(Number(value.toPrecision(digits)));
    if (Math.fround(Number(text)) === value) return text;
  }
  return String(Number(value.toPrecision(9)));
}

/** A quoted string; one that a spreadsheet would take for a formula gets a ' in front. */
function csvString(text) {
  const shown = plainPieces(text);
  return `"${(/^[=+\-@]/.test(shown) ? "'" : "") + shown.replaceAll("\"", "\"\"")}"`;
}
