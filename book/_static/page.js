// Small services of every page: wide tables and formulas scroll by keyboard, and a link to a folded place
// unfolds it.
document.addEventListener("DOMContentLoaded", () => {
  const wide = "article table, article div.math";
  const mark = (part) => {
    if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  };
  const watch = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target.closest(wide))));
  document.querySelectorAll(wide).forEach((part) => {
    mark(part);
    [part, ...part.children].forEach((each) => watch.observe(each));
  });
  window.MathJax?.startup?.promise?.then(() => document.querySelectorAll("article div.math").forEach(mark));

  const unfold = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    let fold = target?.closest("details");
    for (; fold; fold = fold.parentElement.closest("details")) fold.open = true;
    target?.scrollIntoView();
  };
  if (location.hash) unfold();
  window.addEventListener("hashchange", unfold);
});
