// The overview of all claims: three menus choose the rows by chapter, verdict and provenance. Without this script it is
// a plain table.
document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("table.claims-overview");
  if (!table) return;
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const rows = [...table.tBodies[0].rows];
  const said = (row, column) => row.cells[column].textContent.trim();
  const menus = ["verdict", "provenance", "chapter"].map((name) => {
    const column = names.indexOf(name), menu = document.createElement("select"), label = document.createElement("label");
    menu.add(new Option("all", ""));
    [...new Set(rows.map((row) => said(row, column)))].forEach((each) => menu.add(new Option(each, each)));
    label.append(name, menu);
    return { column, menu, label };
  });
  const count = Object.assign(document.createElement("p"), { className: "claims-count" });
  count.setAttribute("role", "status");
  const choose = () => {
    for (const row of rows) row.hidden = menus.some(({ column, menu }) => menu.value && menu.value !== said(row, column));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
  };
  const form = Object.assign(document.createElement("form"), { className: "claims-filter" });
  form.setAttribute("aria-label", "Choose claims");
  form.append(...menus.map(({ label }) => label), Object.assign(document.createElement("button"), { type: "reset", textContent: "Show all" }));
  form.addEventListener("input", choose);
  form.addEventListener("reset", () => setTimeout(choose));
  table.before(form, count);
  choose();
});
