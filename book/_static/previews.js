// Previews: a link to a definition, proposition, equation, figure or term shows what it leads to, on hover, on focus and
// at the first tap; Escape closes it. The target is cut out of its page, which comes from this site; where that cannot be
// fetched (a page opened as a file, a reader who saves data) a link is what it always was.
document.addEventListener("DOMContentLoaded", () => {
  const KINDS = /^#(term|def|prop|lem|rem|cor|equation|fig)-/;
  const WAIT = 250; // milliseconds before a preview opens or closes
  const pages = new Map([[location.pathname, Promise.resolve(document)]]);
  const box = Object.assign(document.createElement("div"), { id: "preview", className: "preview bd-article", hidden: true });
  box.setAttribute("role", "note");
  document.body.append(box);
  let shown = null, wanted = null, timer = 0, touch = false;

  const page = (url) => {
    if (!pages.has(url.pathname)) {
      const fetched = fetch(url.pathname).then((answer) => (answer.ok ? answer.text() : Promise.reject(answer.status)));
      pages.set(url.pathname, fetched.then((text) => new DOMParser().parseFromString(text, "text/html")));
    }
    return pages.get(url.pathname);
  };

  const cutOut = (source, url) => {
    const target = source.getElementById(decodeURIComponent(url.hash.slice(1)));
    if (!target) return null;
    const place = target.closest("dt, figure, div.proof, div.math-wrapper, div.math") ?? target;
    const pieces = [place.cloneNode(true)];
    if (place.matches("dt")) {
      let next = place.nextElementSibling;
      while (next?.matches("dt")) next = next.nextElementSibling; // several names of one term
      if (next) pieces.push(next.cloneNode(true));
    }
    const whole = document.createElement("div");
    whole.append(...pieces);
    whole.querySelectorAll(".headerlink, button, script, .figure-origin").forEach((part) => part.remove());
    whole.querySelectorAll("[tabindex]").forEach((part) => part.removeAttribute("tabindex"));
    whole.querySelectorAll("[id]").forEach((part) => part.closest("svg") || part.removeAttribute("id"));
    for (const [name, kind] of [["src", "img"], ["href", "a"]])
      whole.querySelectorAll(`${kind}[${name}]`).forEach((part) =>
        part.setAttribute(name, new URL(part.getAttribute(name), url).href));
    return whole;
  };

  const put = (link) => {
    const seen = link.getClientRects()[0] ?? link.getBoundingClientRect(), margin = 12;
    const below = innerHeight - seen.bottom > Math.min(box.offsetHeight, 260) + margin;
    const top = below ? seen.bottom + 6 : Math.max(margin, seen.top - box.offsetHeight - 6);
    const left = Math.min(Math.max(margin, seen.left), document.documentElement.clientWidth - box.offsetWidth - margin);
    box.style.top = `${top + scrollY}px`;
    box.style.left = `${Math.max(margin, left) + scrollX}px`;
  };

  const show = async (link) => {
    if (navigator.connection?.saveData) return;
    const url = new URL(link.href);
    wanted = link;
    const found = await page(url).then((source) => cutOut(source, url)).catch(() => null);
    if (!found || wanted !== link) return;
    if (touch) {
      const open = Object.assign(document.createElement("a"), { href: link.href, textContent: "Go there" });
      found.append(Object.assign(document.createElement("p"), { className: "preview-open" }));
      found.lastChild.append(open);
    }
    box.replaceChildren(found);
    box.hidden = false;
    if (link.title) [link.dataset.title, link.title] = [link.title, ""];
    link.setAttribute("aria-describedby", "preview");
    shown = link;
    put(link);
    await window.MathJax?.typesetPromise?.([found]);
    if (shown === link) put(link);
  };

  const close = () => {
    clearTimeout(timer);
    wanted = null;
    if (!shown) return;
    shown.removeAttribute("aria-describedby");
    if (shown.dataset.title) shown.title = shown.dataset.title;
    box.hidden = true;
    shown = null;
  };
  const later = (what, wait = WAIT) => {
    clearTimeout(timer);
    timer = setTimeout(what, wait);
  };

  document.querySelectorAll("article a.reference.internal[href*='#'], article a[href^='#']").forEach((link) => {
    const url = new URL(link.href, location.href);
    if (url.origin !== location.origin || !KINDS.test(url.hash) || link.matches(".headerlink")) return;
    link.classList.add("has-preview");
    link.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && later(() => show(link)));
    link.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && later(close));
    link.addEventListener("focus", () => !touch && later(() => show(link)));
    link.addEventListener("blur", () => !touch && later(close));
    link.addEventListener("click", (event) => {
      if (!touch || shown === link) return close();
      event.preventDefault(); // the first tap shows, the second goes there
      show(link).then(() => shown === link || location.assign(link.href));
    });
  });
  document.addEventListener("pointerdown", (event) => {
    touch = event.pointerType === "touch";
    if (shown && !box.contains(event.target) && !shown.contains(event.target)) close();
  }, true);
  document.addEventListener("keydown", (event) => {
    touch = false;
    if (event.key === "Escape") close();
  });
  box.addEventListener("pointerenter", () => clearTimeout(timer));
  box.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && later(close));
});
