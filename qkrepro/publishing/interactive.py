"""The page that answers at once: ρ_θ in the browser, without a kernel and without a network.

A Vega-Lite chart (Altair) whose parameters are the knobs is compiled to Vega when the site is built; Vega itself comes
from the installed vl-convert. The formula is that of `qkrepro.theory.propagation.signal_propagation_limit` at a finite
length, for a symmetric matrix, written a second time in Vega's expressions; the tests hold the two against each other.
Source: book, "Theory: signal propagation" (derived).
"""

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair

LOCATIONS = 256  # points of the profile, θ = 1/256, 2/256, … 1
ROWS = "profile"  # name of the compiled dataset with one row per location
SHOWN = (1, 64, 128, 192, 256)  # locations of the page's table, in units of 1/256


@dataclass(frozen=True)
class Knob:
    """A slider: the parameter it sets, what the reader is told, its range; `base` 10 or 2: it sets an exponent."""

    name: str
    label: str
    low: float
    high: float
    step: float
    start: float
    base: int = 0


KNOBS = (
    Knob("mean", "Mean of the eigenvalues, μ", -0.5, 0.5, 0.0025, 0.05),
    Knob("log_variance", "Variance of the eigenvalues, σ²", -6, 1, 0.05, -4, 10),
    Knob("log_temperature", "Temperature, λ", -1, 3, 0.05, 0, 10),
    Knob("log_length", "Length, T tokens", 2, 13, 1, 8, 2),
    Knob("log_dim", "Number of eigenvalues, d", 0, 10, 1, 7, 2),
)
CASES = {  # settings that show the regimes of the theory, for the other knobs at their start
    "middle": {},
    "late": {"mean": 0.0075, "log_variance": -5},
    "mirror: early": {"mean": -0.0075, "log_variance": -5},
    "broad": {"mean": 0.0, "log_variance": -0.5},
    "all pass": {"mean": 0.0075, "log_variance": -5, "log_temperature": 2.5},
    "few eigenvalues": {"mean": 0.48, "log_variance": -5, "log_dim": 1},
}
DERIVED = {  # parameters that follow from the knobs, as Vega expressions
    "variance": "pow(10, log_variance)",
    "temperature": "pow(10, log_temperature)",
    "length": "pow(2, log_length)",
    "dim": "pow(2, log_dim)",
    "xi": "dim * mean",
    "eta": "dim * (mean * mean + variance)",
}
PROFILE = {  # columns of a location, in this order
    "theta": f"datum.step / {LOCATIONS}",
    "gamma": "clamp(floor(datum.theta * length + 0.5), 1, length) - (length + 1) / 2",
    "std": "sqrt((2 * datum.gamma * datum.gamma + (length * length - 1) / 12) * eta)",
    "low": "(-temperature - datum.gamma * xi) / datum.std",
    "high": "(temperature * (length - 1) - datum.gamma * xi) / datum.std",
    "rho": "datum.low > 0 ? cumulativeNormal(-datum.low) - cumulativeNormal(-datum.high)"
    " : cumulativeNormal(datum.high) - cumulativeNormal(datum.low)",
    "weight": f"(datum.step == 1 || datum.step == {LOCATIONS} ? 0.5 : 1) / {LOCATIONS - 1}",  # trapezoid, of the span
    "part": "datum.weight * datum.rho",
}
DENSITY = {
    "density": "datum.rho / datum.level",
    "surprise": "datum.rho > 0 ? -datum.weight * datum.density * log(datum.density) : 0",
    "moment": "datum.weight * datum.density * datum.theta",
}
SUMMARY = {
    "index": "datum.level < 1e-12 ? NaN : 1 - exp(datum.entropy)",
    "regime": "datum.level < 1e-12 ? 'hardly any token passes'"
    " : datum.index < 0.1 ? (datum.level > 0.9 ? 'every token passes' : 'broad: no site is shut out')"
    " : xi > 0 ? (xi > 2 * temperature ? 'middle-site focus' : 'late-site focus')"
    " : (-xi > 2 * temperature ? 'mirror image: middle-site focus before the centre' : 'mirror image: early tokens')",
}
LIMIT = {  # where the signal passes when the number of equal eigenvalues and the length grow
    "from": "xi > 0 ? 0.5 : xi < 0 ? max(0, 0.5 + temperature / xi) : 0",
    "to": "xi > 0 ? min(1, 0.5 + temperature / xi) : xi < 0 ? 0.5 : 0",
}


def chart() -> "altair.LayerChart":
    """Return the profile over the sequence as an Altair chart.

    Its parameters are the knobs and what follows from them.
    """
    import altair as alt

    knobs = [alt.param(name=knob.name, value=knob.start) for knob in KNOBS]
    derived = [alt.param(name=name, expr=expression) for name, expression in DERIVED.items()]
    sequence: Any = {"sequence": {"start": 1, "stop": LOCATIONS + 1, "as": "step"}, "name": ROWS}
    one_row: Any = {"values": [{"row": 0}]}
    rows, band = alt.Chart(sequence), alt.Chart(one_row)
    for name, expression in PROFILE.items():
        rows = rows.transform_calculate(**{name: expression})
    rows = rows.transform_joinaggregate(level="sum(part)")
    for name, expression in DENSITY.items():
        rows = rows.transform_calculate(**{name: expression})
    rows = rows.transform_joinaggregate(entropy="sum(surprise)", centre="sum(moment)")
    for name, expression in SUMMARY.items():
        rows = rows.transform_calculate(**{name: expression})
    location = "location θ = i/T (1 is the query)"
    x = alt.X("theta:Q", title=location, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=5))
    y = alt.Y(
        "rho:Q",
        title="ρ, probability that the signal passes",
        scale=alt.Scale(domain=[0, 1]),
        stack=None,
        axis=alt.Axis(tickCount=5),
    )
    for name, expression in LIMIT.items():
        band = band.transform_calculate(**{name: expression})
    band = band.mark_rect(color="#de8f05", opacity=0.2).encode(x=alt.X("from:Q", title=location), x2="to:Q")
    curve = rows.mark_area(color="#0173b2", opacity=0.15, line={"color": "#0173b2", "strokeWidth": 2.5, "opacity": 1})
    layers = alt.layer(band, curve.encode(x=x, y=y))
    axes = {"labelFontSize": 13, "titleFontSize": 13, "labelColor": "#222", "titleColor": "#222"}
    described = layers.add_params(*knobs, *derived).properties(
        width="container", height=260, description="Signal propagation probability over the sequence"
    )
    drawn: alt.LayerChart = described.configure(background="white", font="sans-serif").configure_axis(
        titleFontWeight="normal", **axes
    )
    return drawn


def vega_specification() -> dict[str, Any]:
    """Return the chart compiled to Vega: what the page draws, and what the tests evaluate."""
    import vl_convert

    compiled: dict[str, Any] = vl_convert.vegalite_to_vega(chart().to_dict())
    return compiled


def vega_library() -> str:
    """Return the vega as one script that sets `window.vegaEmbed`, from the installed package."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"(() => {{{bundle}}})();\n"  # its names stay its own


def page_fragment(script: str) -> str:
    """Return the interactive part of a page as HTML.

    It has the controls, the chart's place, its table, its specification and the `script` that connects them.
    """
    specification = json.dumps(vega_specification(), separators=(",", ":")).replace("</", "<\\/")
    settings = {"shown": SHOWN, "start": {knob.name: knob.start for knob in KNOBS}, "cases": CASES, "rows": ROWS}
    rows = "".join(f"<th scope=col>{step / LOCATIONS:.3g}</th>" for step in SHOWN)
    cells = "".join(f'<td data-step="{step}"></td>' for step in SHOWN)
    return f"""<div class="rho" id="rho">
<div class="rho-cases" role="group" aria-label="Cases of the theory">{_case_buttons()}</div>
<div class="rho-knobs">{"".join(_control(knob) for knob in KNOBS)}</div>
<p class="rho-summary" role="status" id="rho-summary"></p>
<div id="rho-chart" role="img" aria-describedby="rho-summary" aria-label="Curve of the signal propagation probability
 over the sequence; in words above, and its values at five locations in the table below"></div>
<div class="rho-scroll" tabindex="0" role="region" aria-label="Values at five locations">
<table class="table rho-values"><tr><th scope=row>location θ</th>{rows}</tr><tr><th scope=row>ρ</th>{cells}</tr></table>
</div><noscript><p>This page computes in the browser: it needs JavaScript, which is switched off.</p></noscript></div>
<script type="application/json" id="rho-specification">{specification}</script>
<script type="application/json" id="rho-settings">{json.dumps(settings)}</script>
<script src="../_static/vega/vega.js"></script>
<script>{script}</script>
"""


def write_interactive(work: Path) -> None:
    """Put the fragment and the library where the build in `work` looks for them; the script is book/interactive.js."""
    fragment = page_fragment((work / "book" / "interactive.js").read_text(encoding="utf-8"))
    for path, text in {"book/generated/interactive.html": fragment, "local/vega/vega.js": vega_library()}.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text, encoding="utf-8")


def _control(knob: Knob) -> str:
    name = f"rho-{knob.name}"
    return (
        f'<div class="rho-knob"><label for="{name}">{html.escape(knob.label)}</label>'
        f'<input type="range" id="{name}" data-knob="{knob.name}" data-base="{knob.base}" min="{knob.low:g}" '
        f'max="{knob.high:g}" step="{knob.step:g}" value="{knob.start:g}"><output for="{name}"></output></div>'
    )


def _case_buttons() -> str:
    return "".join(f'<button type="button" data-case="{name}">{html.escape(name)}</button>' for name in CASES)
