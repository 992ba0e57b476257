// Connects the knobs of the interactive page to the chart; every number comes from the chart's own data.
(async () => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const { shown, start, cases, rows } = read("rho-settings");
  const page = document.getElementById("rho");
  const knobs = [...page.querySelectorAll("input[data-knob]")];
  const options = { mode: "vega", renderer: "svg", actions: false, hover: false, tooltip: false, defaultStyle: false };
  const { view } = await vegaEmbed("#rho-chart", read("rho-specification"), options);

  const inWords = (value) => {
    const [digits, exponent] = value.toExponential(2).split("e");
    if (value === 0) return "0";
    if (Math.abs(exponent) < 4) return String(Number(value.toPrecision(3)));
    return `${Number(digits)}·10${[...String(Number(exponent))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("")}`;
  };
  const valueOf = (knob) => {
    const base = Number(knob.dataset.base);
    return base ? base ** Number(knob.value) : Number(knob.value);
  };

  const show = () => {
    for (const knob of knobs) {
      const text = inWords(valueOf(knob));
      knob.nextElementSibling.textContent = text;
      knob.setAttribute("aria-valuetext", text);
      view.signal(knob.dataset.knob, Number(knob.value));
    }
    view.run();
    const data = view.data(rows);
    for (const step of shown) page.querySelector(`[data-step="${step}"]`).textContent = data[step - 1].rho.toFixed(3);
    const xi = view.signal("xi"), number = (xi * xi) / view.signal("eta");
    const { regime, index, level, centre } = data[0];
    const measures = level < 1e-12 ? "index undefined"
      : `localization index ${index.toFixed(2)}, centre ${centre.toFixed(2)}`;
    document.getElementById("rho-summary").textContent = `${regime[0].toUpperCase()}${regime.slice(1)}: ${measures}, `
      + `level ${level.toFixed(2)}. Trace over temperature ξ/λ = ${inWords(xi / view.signal("temperature"))}, `
      + `effective number of equal eigenvalues N = ${number.toFixed(1)}.`;
  };

  const set = (values) => {
    for (const knob of knobs) knob.value = { ...start, ...values }[knob.dataset.knob];
    show();
  };
  for (const knob of knobs) knob.addEventListener("input", show);
  for (const button of page.querySelectorAll("button[data-case]")) {
    button.addEventListener("click", () => set(cases[button.dataset.case]));
  }
  const place = document.getElementById("rho-chart");
  new ResizeObserver(() => view.signal("width", place.clientWidth).run()).observe(place);
  window.rhoView = view; // for the tests, and for who wants to look
  set({});
})();
