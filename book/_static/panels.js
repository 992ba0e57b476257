// On a phone the panels of a figure stand one below the other: the same picture, once for every piece of it. A tap shows
// the figure whole and large, and another one its pieces again. Wide screens, print and readers without scripts see the
// picture as it is.
document.addEventListener("DOMContentLoaded", () => {
  const narrow = window.matchMedia("(max-width: 576px)");
  const largest = 0.66; // pixels of the page for one of the picture, so that a narrow panel does not become huge
  const percent = (share) => `${100 * share}%`;

  const part = (source, [width, height], [left, top, right, bottom], whole) => {
    const frame = document.createElement("div"), image = new Image();
    frame.className = "stacked-part";
    frame.style.width = percent((right - left) / whole);
    frame.style.aspectRatio = `${right - left} / ${bottom - top}`;
    image.alt = "";
    image.src = source;
    image.style.width = percent(width / (right - left));
    image.style.height = percent(height / (bottom - top));
    image.style.left = percent(-left / (right - left));
    image.style.top = percent(-top / (bottom - top));
    frame.append(image);
    return frame;
  };

  const stack = (image) => {
    const figure = image.closest("figure"), { size, title, pieces } = JSON.parse(image.dataset.panels);
    const panels = document.createElement("div");
    panels.className = "stacked-panels";
    panels.setAttribute("role", "img");
    panels.setAttribute("aria-label", image.alt);
    if (title) panels.append(Object.assign(document.createElement("p"), { className: "stacked-title", textContent: title }));
    for (const parts of pieces) {
      const piece = document.createElement("div"), whole = parts.reduce((sum, [left, , right]) => sum + right - left, 0);
      piece.className = "stacked-piece";
      piece.style.width = `${largest * whole}px`;
      piece.append(...parts.map((each) => part(image.currentSrc || image.src, size, each, whole)));
      panels.append(piece);
    }
    (image.closest("a") ?? image).after(panels);
    figure.classList.add("stacked");
  };

  const stackAll = () => narrow.matches
    && document.querySelectorAll("article figure:not(.stacked, .whole) img[data-panels]").forEach(stack);
  stackAll();
  narrow.addEventListener("change", stackAll);

  document.querySelectorAll("article figure:has(> img, > a > img)").forEach((figure) =>
    figure.addEventListener("click", (event) =>
      event.target.closest("a, figcaption") || figure.classList.toggle("enlarged")));
});
