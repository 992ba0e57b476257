// Draws the page "The plane": the map and its point, and beside it what a stack of layers does at that point.
// Every number comes from laws.js (tables of the package) and marks.js (records); vega draws, a canvas the attention.
(() => {
  const laws = window.explorerLaws(window.explorerValues), marks = window.explorerMarks;
  const { grid, sizes, bend, unbend } = laws;
  const page = document.getElementById("explorer");
  const find = (name) => page.querySelector(`[data-part="${name}"]`);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const [FEWEST, MOST] = [grid.dispersions[0], grid.dispersions.at(-1)], WIDEST = grid.means.at(-1);
  const WORDS = { safe: "safe", few: "attention on few tokens", alike: "tokens become alike", both: "both collapses", open: "undecided" };
  const chosen = { mean: 16, dispersion: 0.5, tokens: grid.laws[0], softmax: grid.softmaxes[0], layer: 8, length: 64, dim: 64 };

  const number = (value, digits = 3) => {
    const text = String(Number(Number(value).toPrecision(digits)));
    return text.replace("-", "−");
  };
  const percent = (ratio) => `${Math.round(100 * ratio)}%`;

  // -- colours: those of the site's theme, and one for each thing in both themes
  const COLOURS = {
    light: { ink: "#222832", muted: "#55606e", line: "#c9ced6", few: "#9cc7e6", alike: "#f6cf94", both: "#cfc1dd", safe: "#7fd0ae", open: "#dcefe6",
      entropy: "#0173b2", residual: "#b35c00", paper: "#ffffff", outline: "#b3261e", locater: "#7b2d8b" },
    dark: { ink: "#e6e9ee", muted: "#aab4c2", line: "#4a5462", few: "#1f4f73", alike: "#6b4716", both: "#4d3f63", safe: "#13694b", open: "#24493c",
      entropy: "#56b4e9", residual: "#f0a64b", paper: "#14181e", outline: "#ff8a7a", locater: "#d39be3" },
  };
  const theme = () => (document.documentElement.dataset.theme === "dark" ? "dark" : "light");
  const colour = (name) => ({ signal: name });
  const palette = () => Object.entries(COLOURS[theme()]).map(([name, value]) => ({ name, value }));

  // -- Vega specifications
  const FONT = 13;
  const axis = (orient, scale, title, values, more = {}) => ({
    orient, scale, title, values, labelFontSize: FONT, titleFontSize: FONT, titleFontWeight: "normal", labelColor: colour("ink"),
    titleColor: colour("ink"), domainColor: colour("muted"), tickColor: colour("muted"), gridColor: colour("line"), labelOverlap: true, ...more,
  });
  const frame = (padding, extra) => ({
    $schema: "https://vega.github.io/schema/vega/v6.json", background: "transparent", autosize: "none", padding, width: 100, height: 100,
    ...extra, signals: [...palette(), ...(extra.signals ?? [])],
  });
  const line = (data, x, y, stroke, more = {}) => ({
    type: "line", from: { data }, encode: { update: { x: { scale: "x", field: x }, y: { scale: "y", field: y }, stroke: colour(stroke), strokeWidth: { value: 2.5 }, ...more } },
  });
  const rule = (encode) => ({ type: "rule", encode: { update: { stroke: colour("muted"), strokeDash: { value: [4, 3] }, ...encode } } });
  const FILL = "datum.state == 'safe' ? safe : datum.state == 'few' ? few : datum.state == 'alike' ? alike : datum.state == 'both' ? both : open";
  const PLANE = { left: 56, right: 10, top: 8, bottom: 48 };
  const TICKS = { x: [-40, -20, -8, -3, 0, 3, 8, 20, 40], y: grid.dispersions.filter((_, row) => row % 2 === 0) };
  const planeSpecification = () => frame(PLANE, {
    data: ["cells", "outline", "labels", "trails", "points"].map((name) => ({ name, values: [] })),
    scales: [
      { name: "x", type: "symlog", constant: 4, domain: edges(grid.means, bend, unbend).filter((_, i, all) => i === 0 || i === all.length - 1), range: "width" },
      { name: "y", type: "log", domain: edges(grid.dispersions, Math.log, Math.exp).filter((_, i, all) => i === 0 || i === all.length - 1), range: "height" },
    ],
    axes: [
      axis("bottom", "x", "mean of the eigenvalues: ξ/λ = tr W / λ", TICKS.x, { format: "d" }),
      axis("left", "y", "dispersion √(dσ²) / λ", TICKS.y, { format: "~g" }),
    ],
    marks: [
      { type: "rect", from: { data: "cells" }, encode: { update: {
        x: { scale: "x", field: "x" }, x2: { scale: "x", field: "x2" }, y: { scale: "y", field: "y" }, y2: { scale: "y", field: "y2" },
        fill: { signal: FILL }, stroke: { signal: FILL }, strokeWidth: { value: 0.8 } } } }, // the stroke closes the seams
      { type: "rule", from: { data: "outline" }, encode: { update: {
        x: { scale: "x", field: "x" }, x2: { scale: "x", field: "x2" }, y: { scale: "y", field: "y" }, y2: { scale: "y", field: "y2" },
        stroke: colour("outline"), strokeWidth: { value: 2.5 }, strokeCap: { value: "round" } } } },
      { type: "text", from: { data: "labels" }, encode: { update: {
        x: { scale: "x", field: "x" }, y: { scale: "y", field: "y" }, text: { field: "text" }, align: { value: "center" }, baseline: { value: "middle" },
        fontSize: { value: FONT }, fontWeight: { value: "bold" }, fill: colour("ink"), lineHeight: { value: 15 } } } },
      { type: "group", from: { facet: { name: "trail", data: "trails", groupby: "name" } }, marks: [
        { type: "line", from: { data: "trail" }, encode: { update: { x: { scale: "x", field: "x" }, y: { scale: "y", field: "y" }, stroke: { signal: "datum.group == 'locater' ? locater : ink" }, strokeWidth: { value: 1.5 } } } }] },
      { type: "symbol", from: { data: "points" }, encode: {
        enter: { tooltip: { field: "text" } },
        update: { x: { scale: "x", field: "x" }, y: { scale: "y", field: "y" }, shape: { field: "shape" }, size: { value: 46 },
          stroke: { signal: "datum.group == 'locater' ? locater : ink" }, strokeWidth: { value: 1.6 },
          fill: { signal: "datum.group == 'heads' ? paper : datum.group == 'locater' ? locater : ink" }, fillOpacity: { signal: "datum.group == 'heads' ? 0.55 : 1" } } } },
    ],
  });
  const eigenSpecification = () => frame({ left: 10, right: 10, top: 4, bottom: 20 }, {
    data: [{ name: "values", values: [] }, { name: "mean", values: [] }],
    scales: [{ name: "x", type: "symlog", constant: 0.2, domain: [-14, 14], range: "width" }],
    axes: [axis("bottom", "x", undefined, [-10, -1, 0, 1, 10], { format: "~r" })],
    marks: [
      { type: "rule", from: { data: "values" }, encode: { update: { x: { scale: "x", field: "data" }, y: { value: 4 }, y2: { signal: "height - 4" }, stroke: colour("ink"), opacity: { value: 0.45 } } } },
      { type: "symbol", from: { data: "mean" }, encode: { update: { x: { scale: "x", field: "data" }, y: { signal: "height / 2" }, shape: { value: "diamond" }, size: { value: 110 }, fill: colour("outline"), stroke: colour("paper") } } },
    ],
  });
  const area = (low, high, fill) => ({ type: "area", from: { data: "course" }, encode: { update: {
    x: { scale: "x", field: "layer" }, y: { scale: "y", field: low }, y2: { scale: "y", field: high }, fill: colour(fill), fillOpacity: { value: 0.18 }, defined: { signal: `isValid(datum.${low})` } } } });
  const depthSpecification = () => frame({ left: 40, right: 8, top: 8, bottom: 40 }, {
    signals: [{ name: "layer", value: chosen.layer }],
    data: [{ name: "course", values: [] }],
    scales: [
      { name: "x", type: "linear", domain: [0, sizes.layers], range: "width" }, { name: "y", type: "linear", domain: [0, 1.2], range: "height", clamp: true },
    ],
    axes: [axis("bottom", "x", "layers", [0, 4, 8, 12, 16, 20, 24], { format: "d" }), axis("left", "y", undefined, [0, 0.5, 1], { format: "~g" })],
    marks: [
      rule({ x: { value: 0 }, x2: { signal: "width" }, y: { scale: "y", value: 0.5 } }),
      rule({ x: { scale: "x", signal: "layer" }, y: { value: 0 }, y2: { signal: "height" }, strokeDash: { value: [] } }),
      area("entropyLow", "entropyHigh", "entropy"), area("residualLow", "residualHigh", "residual"),
      line("course", "layer", "entropy", "entropy", { defined: { signal: "isValid(datum.entropy)" } }),
      line("course", "layer", "residual", "residual"),
    ],
  });
  const profileSpecification = () => frame({ left: 40, right: 8, top: 8, bottom: 40 }, {
    data: [{ name: "profile", values: [] }],
    scales: [
      { name: "x", type: "linear", domain: [0, 1], range: "width" }, { name: "y", type: "linear", domain: [0, 1], range: "height", clamp: true },
    ],
    axes: [axis("bottom", "x", "location θ = i/T (1 is the query)", [0, 0.25, 0.5, 0.75, 1], { format: ".2~f" }), axis("left", "y", "ρ", [0, 0.5, 1], { format: "~g", titleAngle: 0, titleX: -22, titleY: 40 })],
    marks: [
      line("profile", "theta", "exact", "outline", { defined: { signal: "isValid(datum.exact)" } }),
      line("profile", "theta", "gaussian", "ink", { strokeWidth: { value: 1.6 }, strokeDash: { value: [5, 4] } }),
    ],
  });

  // Borders between neighbouring values on a bent scale, with one beyond each end.
  function edges(centres, map, back) {
    const at = centres.map(map), inner = at.slice(1).map((value, i) => (value + at[i]) / 2);
    return [2 * at[0] - inner[0], ...inner, 2 * at.at(-1) - inner.at(-1)].map(back);
  }

  const views = {};
  const SPECIFICATIONS = { plane: planeSpecification, eigenvalues: eigenSpecification, depth: depthSpecification, profile: profileSpecification };
  const PADDED = { plane: PLANE, eigenvalues: { left: 10, right: 10, top: 4, bottom: 20 }, depth: { left: 40, right: 8, top: 8, bottom: 40 }, profile: { left: 40, right: 8, top: 8, bottom: 40 } };
  const fit = (name) => {
    const place = find(name), pad = PADDED[name];
    views[name].width(Math.max(40, place.clientWidth - pad.left - pad.right)).height(Math.max(20, place.clientHeight - pad.top - pad.bottom)).resize().run();
  };
  for (const [name, specification] of Object.entries(SPECIFICATIONS)) {
    views[name] = new vega.View(vega.parse(specification()), { renderer: "canvas", container: find(name).firstElementChild });
    fit(name);
  }

  // -- the map: one colour a cell, an outline around what is safe, a word in the largest patch of each kind
  const across = edges(grid.means, bend, unbend), upward = edges(grid.dispersions, Math.log, Math.exp);
  const each = (fill) => grid.means.flatMap((_, column) => grid.dispersions.map((__, row) => fill(column, row)));
  const stateAt = (column, row) => column >= 0 && row >= 0 && column < grid.means.length && row < grid.dispersions.length
    ? laws.state(laws.cell(chosen.tokens, chosen.softmax, chosen.layer, column, row)) : "outside";
  const outlineOf = (column, row) => {
    if (stateAt(column, row) !== "safe") return [];
    const [x, x2, y, y2] = [across[column], across[column + 1], upward[row], upward[row + 1]];
    return [[-1, 0, { x, x2: x, y, y2 }], [1, 0, { x: x2, x2, y, y2 }], [0, -1, { x, x2, y, y2: y }], [0, 1, { x, x2, y: y2, y2 }]]
      .filter(([dx, dy]) => stateAt(column + dx, row + dy) !== "safe").map(([, , piece]) => piece);
  };
  const LABELS = { safe: ["safe"], few: ["attention on", "few tokens"], alike: ["tokens", "become alike"], both: ["both collapses"] };
  // A word in each patch, at the cell with the most room around it: from other patches, marks and the border. The room
  // is counted in half extents of the text, so that 1 is enough; without it there is no word (the legend has them all).
  const label = (kind, cells) => {
    const [x, y] = ["x", "y"].map((name) => views.plane.scale(name)), text = LABELS[kind];
    const wide = 3.9 * Math.max(...text.map((part) => part.length)) + 4, high = 8 * text.length + 2;
    const others = [...cells.filter((cell) => cell.state !== kind), ...views.plane.data("points")].map((each) => [x(each.at ?? each.x), y(each.up ?? each.y)]);
    const room = (cell) => {
      const [left, top] = [x(cell.at), y(cell.up)];
      let least = Math.min(left / wide, (views.plane.width() - left) / wide, top / high, (views.plane.height() - top) / high);
      for (const [a, b] of others) least = Math.min(least, Math.max(Math.abs(a - left) / wide, Math.abs(b - top) / high));
      return least;
    };
    const best = cells.filter((cell) => cell.state === kind).map((cell) => [room(cell), cell]).sort((a, b) => b[0] - a[0])[0];
    return best && best[0] >= 1 ? [{ x: best[1].at, y: best[1].up, text }] : [];
  };
  const drawMap = () => {
    const cells = each((column, row) => ({
      state: stateAt(column, row), at: grid.means[column], up: grid.dispersions[row], x: across[column], x2: across[column + 1], y: upward[row], y2: upward[row + 1],
    }));
    views.plane.data("cells", cells).data("outline", each(outlineOf).flat()).data("labels", Object.keys(LABELS).flatMap((kind) => label(kind, cells)));
  };
  const shown = () => Object.keys(marks.groups).filter((name) => find(`show-${name}`).checked);
  const drawMarks = () => {
    const names = shown();
    views.plane.data("points", names.flatMap((name) => marks.groups[name].points.map((point) => ({ ...point, group: name, shape: marks.groups[name].shape }))));
    views.plane.data("trails", names.flatMap((name) => (marks.groups[name].trail ?? []).map((point) => ({ ...point, name, group: name }))));
  };
  const countMarks = () => {
    const parts = Object.values(marks.groups).filter((group) => group.counted).map(({ points, name }) => {
      const safe = points.filter(({ x, y }) => stateAt(...laws.cellOf(x, y)) === "safe").length;
      return `${safe || "none"} of the ${points.length} ${name}`;
    });
    find("counted").textContent = `The safe region of this map holds ${parts.join(", ")}.`;
  };

  // -- the buttons: the place that each names, or on other maps the nearest cell of the same state; none without one
  const presets = page.querySelectorAll("button[data-mean]");
  const goalOf = ({ dataset }) => {
    const [mean, dispersion] = [Number(dataset.mean), Number(dataset.dispersion)];
    if (!dataset.goal) return [mean, dispersion];
    const far = ([x, y]) => Math.hypot(bend(x) - bend(mean), Math.log(y / dispersion) / 2);
    const cells = each((column, row) => ({ state: stateAt(column, row), place: [grid.means[column], grid.dispersions[row]] }));
    return cells.filter(({ state }) => state === dataset.goal).map(({ place: at }) => at).sort((a, b) => far(a) - far(b))[0];
  };

  // -- the point
  const handle = find("handle"), plane = find("plane");
  const sliders = { mean: find("mean"), dispersion: find("dispersion"), layer: find("layer") };
  const place = () => {
    const x = PLANE.left + views.plane.scale("x")(chosen.mean), y = PLANE.top + views.plane.scale("y")(chosen.dispersion);
    handle.style.transform = `translate(${x}px, ${y}px)`;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const tidy = (mean) => { const step = Math.abs(mean) < 8 ? 0.1 : 0.5; return Number((Math.round(mean / step) * step).toFixed(1)); };
  const move = (mean, dispersion) => {
    chosen.mean = tidy(clamp(mean, -WIDEST, WIDEST));
    chosen.dispersion = clamp(Number(dispersion.toPrecision(3)), FEWEST, MOST);
    request();
  };

  // -- what is beside it
  const canvas = find("attention"), brush = canvas.getContext("2d"), picture = brush.createImageData(sizes.length, sizes.length);
  canvas.width = canvas.height = sizes.length;
  const scheme = vega.scheme("cividis");
  const shades = Array.from({ length: 256 }, (_, step) => scheme(step / 255).match(/\d+/g).map(Number));
  const drawAttention = () => {
    const { weights, entropy } = laws.attention(chosen.tokens, chosen.softmax, chosen.mean, chosen.dispersion);
    for (let at = 0; at < weights.length; at++) {
      const hidden = at % sizes.length > Math.floor(at / sizes.length);
      const [red, green, blue] = shades[Math.min(255, Math.round(255 * weights[at] ** 0.4))]; // small weights stretched, as in chapter 6
      picture.data.set([red, green, blue, hidden ? 0 : 255], 4 * at);
    }
    brush.putImageData(picture, 0, 0);
    return entropy;
  };
  const drawDepth = () => {
    const { entropy, entropyHalf, residual, residualHalf } = laws.depth(chosen.tokens, chosen.softmax, ...laws.cellOf(chosen.mean, chosen.dispersion));
    const course = [{ layer: 0, residual: 1, residualLow: 1, residualHigh: 1, entropy: null, entropyLow: null, entropyHigh: null }];
    for (let i = 0; i < sizes.layers; i++) {
      course.push({
        layer: i + 1, entropy: entropy[i], entropyLow: entropy[i] - entropyHalf[i], entropyHigh: entropy[i] + entropyHalf[i],
        residual: residual[i], residualLow: residual[i] - residualHalf[i], residualHigh: residual[i] + residualHalf[i],
      });
    }
    views.depth.data("course", course).run();
    return course;
  };
  const drawProfile = () => {
    const rows = laws.profile(chosen.dim, chosen.length, chosen.mean, chosen.dispersion);
    views.profile.data("profile", rows).run();
    return rows;
  };
  const describe = (course, single) => {
    const { mean, dispersion, layer, tokens, softmax } = chosen;
    const [column, row] = laws.cellOf(mean, dispersion), here = stateAt(column, row), at = course[layer], last = course[sizes.layers];
    const ratio = mean === 0 ? "" : `, σ/|μ| = ${number(dispersion * Math.sqrt(sizes.dim) / Math.abs(mean), 2)}`;
    const point = `ξ/λ = ${number(mean)}, dispersion ${number(dispersion)}${ratio}`;
    find("verdict").textContent = `${WORDS[here][0].toUpperCase()}${WORDS[here].slice(1)}`;
    find("verdict").dataset.state = here;
    find("point").textContent = point;
    find("entropy-text").textContent = `${percent(course[1].entropy)} of uniform`;
    const ends = [...new Set([layer, sizes.layers])];
    find("residual-text").textContent = ends.map((end) => `${percent(course[end].residual)} after ${end}`).join(", ");
    find("cell").textContent = `ξ/λ = ${number(grid.means[column])}, dispersion ${number(grid.dispersions[row])}`;
    find("single").textContent = `this one keeps ${percent(single)} of the entropy of uniform attention`;
    return `${point}, ${tokens} tokens, ${softmax} softmax. ${find("verdict").textContent} at ${layer} layers. `
      + `The first layer keeps ${percent(course[1].entropy)} of the entropy of uniform attention; the tokens keep ${percent(at.residual)} of `
      + `their difference after ${layer} layers and ${percent(last.residual)} after ${sizes.layers}.`;
  };
  const describeProfile = (rows) => {
    const best = (row) => row.exact ?? row.gaussian, top = rows.reduce((found, row) => (best(row) > best(found) ? row : found));
    const apart = Math.max(...rows.map((row) => (row.exact === null ? 0 : Math.abs(row.exact - row.gaussian))));
    const level = rows.reduce((sum, row) => sum + best(row), 0) / rows.length;
    find("profile-text").textContent = `On average ρ is ${level.toFixed(2)}, highest (${best(top).toFixed(2)}) at θ = ${top.theta.toFixed(2)}. `
      + (rows[0].exact === null ? `For d = ${chosen.dim} the Gaussian form is drawn; the exact distribution function differs from it by at most ${laws.table.gaussian_error}.`
        : `The Gaussian form errs here by up to ${apart.toFixed(2)}.`);
  };

  // -- one frame for all that changed since the last
  let wanted = 0, spoken = 0;
  const update = () => {
    wanted = 0;
    place();
    sliders.mean.value = bend(chosen.mean);
    sliders.dispersion.value = Math.log2(chosen.dispersion);
    sliders.layer.value = chosen.layer;
    sliders.mean.setAttribute("aria-valuetext", number(chosen.mean));
    sliders.dispersion.setAttribute("aria-valuetext", number(chosen.dispersion));
    sliders.layer.setAttribute("aria-valuetext", `${chosen.layer} layers`);
    find("mean-value").textContent = number(chosen.mean);
    find("dispersion-value").textContent = number(chosen.dispersion);
    find("layer-value").textContent = chosen.layer;
    handle.setAttribute("aria-valuenow", chosen.mean);
    const single = drawAttention(), values = laws.eigenvalues(chosen.tokens, chosen.mean, chosen.dispersion);
    views.eigenvalues.data("values", Array.from(values)).data("mean", [chosen.mean / sizes.dim]).run();
    const text = describe(drawDepth(), single);
    handle.setAttribute("aria-valuetext", `mean ${number(chosen.mean)}, dispersion ${number(chosen.dispersion)}, ${find("verdict").textContent}`);
    describeProfile(drawProfile());
    clearTimeout(spoken);
    spoken = setTimeout(() => { find("summary").textContent = text; }, 400); // once the point rests
  };
  const request = () => { wanted ||= requestAnimationFrame(update); };
  const redraw = () => {
    drawMarks();
    views.plane.run();
    drawMap();
    views.plane.run();
    views.depth.signal("layer", chosen.layer);
    countMarks();
    for (const button of presets) button.disabled = !goalOf(button);
    request();
  };

  // -- what the reader does
  const toPoint = (event) => {
    const box = plane.getBoundingClientRect();
    move(views.plane.scale("x").invert(event.clientX - box.left - PLANE.left), views.plane.scale("y").invert(event.clientY - box.top - PLANE.top));
  };
  let dragging = false;
  plane.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    dragging = true;
    plane.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
    event.preventDefault();
    toPoint(event);
  });
  plane.addEventListener("pointermove", (event) => { if (dragging) toPoint(event); });
  for (const name of ["pointerup", "pointercancel"]) plane.addEventListener(name, () => { dragging = false; });
  handle.addEventListener("keydown", (event) => {
    const big = event.shiftKey ? 4 : 1, step = Math.abs(chosen.mean) < 8 ? 0.5 : 1, factor = 2 ** (big / 4);
    const moves = {
      ArrowRight: [chosen.mean + step * big, chosen.dispersion], ArrowLeft: [chosen.mean - step * big, chosen.dispersion],
      ArrowUp: [chosen.mean, chosen.dispersion * factor], ArrowDown: [chosen.mean, chosen.dispersion / factor],
      PageUp: [chosen.mean, chosen.dispersion * 4], PageDown: [chosen.mean, chosen.dispersion / 4],
      Home: [-WIDEST, chosen.dispersion], End: [WIDEST, chosen.dispersion],
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    move(...moves[event.key]);
  });
  sliders.mean.addEventListener("input", () => move(unbend(Number(sliders.mean.value)), chosen.dispersion));
  sliders.dispersion.addEventListener("input", () => move(chosen.mean, 2 ** Number(sliders.dispersion.value)));
  sliders.layer.addEventListener("input", () => { chosen.layer = Number(sliders.layer.value); redraw(); });
  for (const input of page.querySelectorAll("input[type=radio]")) {
    input.addEventListener("change", () => { chosen[input.name.replace("explorer-", "")] = input.value; redraw(); });
  }
  for (const box of page.querySelectorAll("input[type=checkbox]")) box.addEventListener("change", redraw);
  for (const select of page.querySelectorAll("select")) {
    select.addEventListener("change", () => { chosen[select.dataset.part] = Number(select.value); request(); });
  }
  let flight = 0;
  for (const button of presets) {
    button.addEventListener("click", () => {
      const [mean, dispersion] = goalOf(button);
      cancelAnimationFrame(flight);
      if (calm.matches) return move(mean, dispersion);
      const from = [bend(chosen.mean), Math.log(chosen.dispersion)], start = performance.now();
      const step = (now) => {
        const share = Math.min(1, Math.max(0, (now - start) / 350)), eased = share * share * (3 - 2 * share);
        if (share === 1) return move(mean, dispersion);
        move(unbend(from[0] + eased * (bend(mean) - from[0])), Math.exp(from[1] + eased * (Math.log(dispersion) - from[1])));
        flight = requestAnimationFrame(step);
      };
      flight = requestAnimationFrame(step);
    });
  }

  const dress = () => {
    for (const view of Object.values(views)) {
      for (const { name, value } of palette()) view.signal(name, value);
      view.run();
    }
    for (const [name, value] of Object.entries(COLOURS[theme()])) page.style.setProperty(`--explorer-${name}`, value);
  };
  new MutationObserver(dress).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  new ResizeObserver(() => { for (const name of Object.keys(views)) fit(name); redraw(); }).observe(page);
  dress();
  redraw();
  window.explorer = { chosen, move, redraw, laws, views, update, shown }; // for the tests, and for who wants to look
})();
