"use strict";
// A column's button sorts the whole table, its folded rest included.
function rank(cell) {
  const number = cell.dataset.number;
  if (number !== undefined) return Number.isNaN(Number(number)) ? null : Number(number);
  return cell.textContent === "" ? null : cell.textContent;
}
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a < b ? -1 : a > b ? 1 : 0;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}
function sort(button) {
  const head = button.closest("th");
  const tables = [...document.querySelectorAll("table")].filter(
    (table) => table.dataset.group === head.closest("table").dataset.group
  );
  const index = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  const bodies = tables.map((table) => table.tBodies[0]);
  const sizes = bodies.map((body) => body.rows.length);
  const rows = bodies.flatMap((body) => [...body.rows]);
  const keyed = rows.map((row) => [rank(row.cells[index]), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return down ? compare(b, a) : compare(a, b);
  });
  let at = 0;
  bodies.forEach((body, i) => {
    body.append(...keyed.slice(at, at + sizes[i]).map((pair) => pair[1]));
    at += sizes[i];
  });
  for (const table of tables)
    for (const cell of table.tHead.rows[0].cells) {
      if (cell.cellIndex === index)
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
}
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => sort(button));
