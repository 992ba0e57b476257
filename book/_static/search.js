// What Sphinx's search shows of a page: words without raw TeX, nothing where a place has no text, no error on a word
// that every object of the language has, such as "constructor".
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const text = Search.htmlToText, summary = Search.makeSearchSummary, ask = Search.query;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(".math, .headerlink, style, script, mjx-container").forEach((part) => part.replaceWith("…"));
    return text(page.documentElement.outerHTML, anchor).replace(/[…¶\s]*…[…\s]*/g, " … ");
  };
  Search.makeSearchSummary = (...given) => summary(...given) ?? document.createElement("p");
  Search.query = (words) => {
    for (const table of [Search._index.terms, Search._index.titleterms])
      for (const word of Object.getOwnPropertyNames(Object.prototype))
        if (!Object.hasOwn(table, word.toLowerCase())) table[word.toLowerCase()] = [];
    ask(words);
  };
});
