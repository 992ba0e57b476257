// A table that is wider than its column scrolls; give it a tab stop, so that the arrow keys reach its end.
document.addEventListener("DOMContentLoaded", () => {
  const mark = (table) => {
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0;
    else table.removeAttribute("tabindex");
  };
  const watch = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target.closest("table"))));
  document.querySelectorAll("article table").forEach((table) => {
    mark(table);
    [table, ...table.children].forEach((part) => watch.observe(part));
  });
});
