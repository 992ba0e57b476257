// The mathematics of the page "The plane", on the tables of values.js; the tests hold it against the package.
// A point of the plane is (mean, dispersion): ξ/λ = tr W/λ and s/λ = √(dσ²)/λ. Plain functions, no drawing.
window.explorerLaws = (values) => {
  const { sizes, grid, law: table } = values;
  const { length: T, dim: d, layers: LAYERS } = sizes;
  const TYPES = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array };
  const decoded = new Map();
  const array = (name) => {
    if (!decoded.has(name)) {
      const { data, type, scale } = values.arrays[name];
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      decoded.set(name, Float64Array.from(new TYPES[type](bytes.buffer), (integer) => integer * scale));
    }
    return decoded.get(name);
  };

  // Place of a value among ascending ones: the index below it, and the share of the way to the next.
  const between = (sorted, value, map = (x) => x) => {
    let low = 0, high = sorted.length - 1;
    if (value <= sorted[0]) return [0, 0];
    if (value >= sorted[high]) return [high - 1, 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] <= value) low = middle; else high = middle;
    }
    return [low, (map(value) - map(sorted[low])) / (map(sorted[high]) - map(sorted[low]))];
  };
  const bend = (x) => Math.sign(x) * Math.log1p(Math.abs(x) / 4); // the plane's horizontal scale
  const unbend = (y) => Math.sign(y) * 4 * Math.expm1(Math.abs(y));
  const rows = grid.dispersions.length;

  // The cell whose rectangle on the plane holds the point: index of its column and row.
  const cellOf = (mean, dispersion) => {
    const [column, across] = between(grid.means, mean, bend);
    const [row, up] = between(grid.dispersions, dispersion, Math.log);
    return [column + Math.round(across), row + Math.round(up)];
  };
  const cell = (tokens, softmax, layer, column, row) => {
    const at = column * rows + row, cells = grid.means.length * rows, name = `depth/${tokens}/${softmax}`;
    const mean = array(`${name}/mean`);
    return {
      entropy: mean[at],
      residual: mean[(LAYERS + layer - 1) * cells + at],
      safe: array(`${name}/safe`)[(layer - 1) * cells + at] === 1,
    };
  };
  // One word for a cell: the rule of chapter 8, else which of the two means is below one half.
  const state = ({ entropy, residual, safe }) =>
    safe ? "safe" : entropy < 0.5 ? (residual < 0.5 ? "both" : "few") : residual < 0.5 ? "alike" : "open";

  // Both ratios of a cell after 1 … LAYERS layers, means over seeds and half widths of the interval.
  const depth = (tokens, softmax, column, row) => {
    const cells = grid.means.length * rows, at = column * rows + row;
    const read = (name, measure) => {
      const from = array(`depth/${tokens}/${softmax}/${name}`);
      return Float64Array.from({ length: LAYERS }, (_, layer) => from[(measure * LAYERS + layer) * cells + at]);
    };
    return {
      entropy: read("mean", 0), entropyHalf: read("half", 0), residual: read("mean", 1), residualHalf: read("half", 1),
    };
  };

  // First layer of one stack: causal attention (T × T, row by row) and the entropy of its last half of rows over that
  // of uniform attention. Computed at the point itself.
  const weights = new Float64Array(T * T), logits = new Float64Array(T);
  const attention = (tokens, softmax, mean, dispersion) => {
    const like = array(`first/${tokens}/like`), noise = array(`first/${tokens}/noise`);
    let entropy = 0;
    for (let t = 0; t < T; t++) {
      let top = -Infinity, total = 0, average = 0;
      for (let i = 0; i <= t; i++) {
        const logit = mean * like[t * T + i] + dispersion * noise[t * T + i];
        logits[i] = logit;
        average += logit / (t + 1);
        if (logit > top) top = logit;
      }
      for (let i = 0; i <= t; i++) {
        const weight = softmax === "true" ? Math.exp(logits[i] - top)
          : Math.min(1, Math.max(0, (1 + logits[i] - average) / (t + 1)));
        weights[t * T + i] = weight;
        total += weight;
      }
      for (let i = 0; i <= t; i++) {
        const share = weights[t * T + i] / total;
        if (softmax === "true") weights[t * T + i] = share; // the linearised weights are shown as they are
        if (t >= T / 2 && share > 0) entropy -= share * Math.log(share);
      }
    }
    return { weights, entropy: entropy / (T / 2) / Math.log(0.75 * T) };
  };
  const eigenvalues = (tokens, mean, dispersion) =>
    array(`first/${tokens}/spectrum`).map((each) => mean / d + (dispersion / Math.sqrt(d)) * each);

  // Distribution function of the centred logit in standard deviations, between the nodes of the table.
  const exactLaw = (dim, angle, slope, z) => {
    const law = array(`law/${dim}`), slopes = table.slopes.length, points = table.points.length;
    const steps = law.length / slopes / points - 1, share = (angle / (Math.PI / 2)) * steps;
    const a = Math.min(steps - 1, Math.floor(share)), wa = share - a, [g, wg] = between(table.slopes, slope);
    if (z <= table.points[0]) return 0;
    if (z >= table.points[points - 1]) return 1;
    const [p, wp] = between(table.points, z);
    const at = (i, j) => {
      const base = (i * slopes + j) * points + p;
      return law[base] * (1 - wp) + law[base + 1] * wp;
    };
    const inner = (i) => at(i, g) * (1 - wg) + (wg ? at(i, g + 1) * wg : 0);
    return inner(a) * (1 - wa) + (wa ? inner(a + 1) * wa : 0);
  };
  // ρ of every location for a random walk of `length` tokens and a symmetric matrix with `dim` eigenvalues:
  // {theta, exact, gaussian}; exact is null where only the Gaussian form is kept.
  const LOCATIONS = 97;
  const profile = (dim, length, mean, dispersion) => {
    const { cumulativeNormal } = vega, c = (length * length - 1) / 12, found = [];
    const eta = (mean * mean) / dim + dispersion * dispersion, kept = table.dims.includes(dim);
    const angle = Math.atan2(dispersion, Math.abs(mean) / Math.sqrt(dim));
    for (let place = 0; place < LOCATIONS; place++) {
      const token = 1 + ((length - 1) * place) / (LOCATIONS - 1), gamma = token - (length + 1) / 2;
      const deviation = Math.sqrt((2 * gamma * gamma + c) * eta);
      const low = (-1 - gamma * mean) / deviation, high = (length - 1 - gamma * mean) / deviation; // from the mean
      const start = dim >= table.centred ? 0 : (gamma * mean) / deviation; // the table of few eigenvalues is about 0
      const slope = (mean < 0 ? -1 : 1) * (gamma / Math.sqrt(c)); // −M has the law of M at −γ
      found.push({
        theta: token / length,
        exact: kept ? Math.max(0, exactLaw(dim, angle, slope, high + start) - exactLaw(dim, angle, slope, low + start)) : null,
        gaussian: cumulativeNormal(high) - cumulativeNormal(low),
      });
    }
    return found;
  };

  return { sizes, grid, table, bend, unbend, cellOf, cell, state, depth, attention, eigenvalues, profile };
};
