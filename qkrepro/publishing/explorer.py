"""The page "The plane": what a head does, as a function of the mean and the dispersion of its spectrum.

Its scripts and their style lie beside this module in `plane`: `laws.js` (the mathematics on the record of values, which
`qkrepro explorer` writes) and `explorer.js` (what is drawn). When the site is built this module adds what follows from
records that may change: the values, the marks (`explorer_marks`), the page's controls, and the counts in its text.
Source: book, "Both at once", "Real weights", "LocAteR".
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from qkrepro.evidence.numbers import load_numbers
from qkrepro.publishing.explorer_marks import (
    BEND,
    MarkGroup,
    cell_states,
    mark_states,
    neighbour_correlation,
    plane_marks,
)
from qkrepro.publishing.explorer_values import LAYERS, LENGTH, SOFTMAXES, VALUES, read_values
from qkrepro.theory.tokens import TOKEN_LAWS, TokenLaw

SCRIPTS = "../_static/explorer"  # as the page addresses them
DEPTH = 8  # layers of the table, as in the central figure
LENGTHS = (64, 256, 1024, 8192)  # T of the profile
LEGEND = {  # of `explorer_marks.STATES`
    "safe": "safe: neither",
    "alike": "tokens alike",
    "few": "attention on few",
    "both": "both",
    "open": "undecided",
}
PRESETS = {  # a place and its state on random walks with the true softmax after 8 layers; other maps seek the nearest
    "neither collapse": (16.0, 0.5, "safe"),
    "tokens alike": (0.0, 0.5, "alike"),
    "few tokens": (40.0, 0.5, "few"),
    "both": (-16.0, 0.5, "both"),
    "Xavier": (0.0, 1.0, ""),
}


def neighbours_line(root: Path) -> str:
    """What `neighbour_correlation` says, in a sentence."""
    low, high = (f"{value:.2f}".replace("-", "−") for value in neighbour_correlation(root))
    return (
        "\nFor the runs half the covariance of increments stands for that of tokens. The correlation of neighbouring "
        f"increments, −0.50 for independent tokens, is between {low} and {high} in them, at the start and at the best "
        "checkpoint.\n"
    )


def windows_table(root: Path, values: Mapping[str, Any]) -> str:
    """Where means are safe on the map, and where chapter "How large must the mean be?" has them without variance.

    After DEPTH layers of the true softmax, for T = LENGTH tokens, as Markdown. Of the map: safe cells of its row of
    least dispersion. Of the chapter: predicted ends of the window, and measured ones (geometric means over seeds).
    """
    numbers = load_numbers("how_large_a_mean", root / "notebooks" / "numbers")
    grid = values["grid"]
    head = ["tokens", f"safe means on the map, dispersion {grid['dispersions'][0]:g}", "window predicted, no variance"]
    lines = [f"| {' | '.join(head)} | window measured, no variance |", "| --- | --- | --- | --- |"]
    for tokens in TOKEN_LAWS:
        states = cell_states(values, tokens, "true", DEPTH)[:: len(grid["dispersions"])]
        safe = [mean for mean, state in zip(grid["means"], states, strict=True) if state == "safe"]
        cells = [tokens, _signed(safe) if safe else "no mean is safe"]
        for name in ("predicted", "measured"):
            rows = numbers[name]
            rows = rows[(rows["tokens"] == tokens) & (rows["length"] == LENGTH) & (rows["layers"] == DEPTH)]
            ends = [math.exp(rows[end].map(math.log).mean()) if len(rows) else math.nan for end in ("lower", "upper")]
            cells.append(f"from {ends[0]:.1f} to {ends[1]:.1f}" if len(rows) else "not in that chapter")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _signed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}".replace("-", "−") for value in values)


def counts_table(groups: Mapping[str, MarkGroup], values: Mapping[str, Any]) -> str:
    """Where the marks lie after 8 layers: how many are safe in a sentence, all states as a table, in Markdown."""
    table = mark_states(groups, values, DEPTH)
    most = table.groupby("group", sort=False)["safe"].max()
    parts = [f"{_at_most(most[key])} of the {len(groups[key].points)} {groups[key].name}" for key in most.index]
    settings = len(TOKEN_LAWS) * len(SOFTMAXES)
    answer = f"After {DEPTH} layers, in each of the {settings} settings, **the safe region holds {', '.join(parts)}**."
    names = [group.name for group in groups.values() if group.counted]
    caption = f"Marks in cells of each kind after {DEPTH} layers ({' · '.join(names)}):"
    lines = [["tokens", "softmax", *LEGEND.values()], ["---"] * (2 + len(LEGEND))]
    for (tokens, softmax), rows in table.groupby(["tokens", "softmax"], sort=False):
        lines.append([str(tokens), str(softmax), *(" · ".join(str(count) for count in rows[s]) for s in LEGEND)])
    return f"{answer}\n\n{caption}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _at_most(count: int) -> str:
    return f"at most {count}" if count else "none"


def write_explorer(root: Path, work: Path) -> None:
    """Put what the page needs into the staged sources `work`: controls, table, scripts, values, marks and Vega.

    Raises ArgumentError when the record of values is missing or damaged.
    """
    values, groups = read_values(root / VALUES), plane_marks(root)
    marks = json.dumps({"groups": {key: asdict(group) for key, group in groups.items()}}, separators=(",", ":"))
    written = {
        "book/generated/explorer.html": page_fragment(groups, values),
        "book/generated/explorer_windows.md": windows_table(root, values),
        "book/generated/explorer_counts.md": counts_table(groups, values) + neighbours_line(root),
        "local/explorer/values.js": (root / VALUES).read_text(encoding="utf-8"),
        "local/explorer/marks.js": f"window.explorerMarks = {marks};\n",
        "local/vega/vega.js": vega_library(),
    }
    for own in files("qkrepro.publishing").joinpath("plane").iterdir():
        written[f"local/explorer/{own.name}"] = own.read_text(encoding="utf-8")
    for path, text in written.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text, encoding="utf-8")


def vega_library() -> str:
    """Vega as one script that sets `window.vega`, from the installed package."""
    import vl_convert

    module = f"https://cdn.jsdelivr.net/npm/vega@{vl_convert.get_vega_version()}/+esm"  # its name inside the package
    bundle = vl_convert.javascript_bundle(f'import * as vegaModule from "{module}"; window.vega = vegaModule;')
    return f"(() => {{{bundle}}})();\n"  # its names stay its own


def page_fragment(groups: Mapping[str, MarkGroup], values: Mapping[str, Any]) -> str:
    """The controls, the places of the pictures with their texts, and the scripts in their order, as HTML."""
    law, grid = values["law"], values["grid"]
    reach = math.log1p(grid["means"][-1] / BEND)
    low, high = (math.log2(grid["dispersions"][end]) for end in (0, -1))
    presets = "".join(
        f'<button type="button" data-mean="{x:g}" data-dispersion="{y:g}" data-goal="{goal}">{name}</button>'
        for name, (x, y, goal) in PRESETS.items()
    )
    legend = "".join(f'<span><i data-state="{state}"></i>{words}</span>' for state, words in LEGEND.items())
    boxes = "".join(_mark_box(key, group) for key, group in groups.items())
    dims = [(str(dim), f"{dim}") for dim in law["dims"]] + [(str(law["many"]), f"{law['many']} (Gaussian form)")]
    return f"""<link rel="stylesheet" href="{SCRIPTS}/explorer.css">
<div class="explorer" id="explorer">
<div class="explorer-bar">
{_radios("softmax", "Softmax", SOFTMAXES)}
{_radios("tokens", "Tokens", TOKEN_LAWS)}
<div class="explorer-group" role="group" aria-label="Places on the plane"><span>Go to</span>{presets}</div>
</div>
<div class="explorer-main">
<section class="explorer-left" aria-label="The plane">
<div class="explorer-plane" data-part="plane"><div aria-hidden="true"></div>
<div class="explorer-handle" data-part="handle" tabindex="0" role="slider"
 aria-label="Point on the plane. Left and right arrows change the mean, up and down arrows the dispersion"
 aria-valuemin="{grid["means"][0]:g}" aria-valuemax="{grid["means"][-1]:g}" aria-valuenow="16"></div></div>
<p class="explorer-legend">{legend}</p>
<div class="explorer-marks">{boxes}</div>
<div class="explorer-sliders">
{_slider("mean", "Mean ξ/λ", -reach, reach, 0.05)}
{_slider("dispersion", "Dispersion", low, high, 0.125)}
{_slider("layer", "Layers", 1, LAYERS, 1)}
</div>
</section>
<section class="explorer-right" aria-label="What happens at this point">
<p class="explorer-point"><strong data-part="verdict"></strong> <span data-part="point"></span></p>
<div class="explorer-pair">
<figure><canvas data-part="attention" role="img" aria-label="Attention matrix of the first layer of one stack, query
 downwards and key to the right"></canvas>
<figcaption>Attention of the first layer: query ↓, key →, from dark (0)
 to bright (1), small weights stretched; <span data-part="single"></span></figcaption></figure>
<figure class="explorer-narrow"><div class="explorer-eigenvalues" data-part="eigenvalues" role="img"
 aria-label="The {values["sizes"]["dim"]} eigenvalues of W over λ, and their mean"><div></div></div>
<figcaption>Its {values["sizes"]["dim"]} eigenvalues over λ; ◆ their mean</figcaption>
<dl><dt class="explorer-entropy">attention entropy, first layer</dt><dd data-part="entropy-text"></dd>
<dt class="explorer-residual">difference between tokens</dt><dd data-part="residual-text"></dd></dl></figure>
</div>
<figure><div class="explorer-depth" data-part="depth" role="img" aria-label="Both ratios over 24 layers; the text under
 the picture names the values"><div></div></div>
<figcaption><span class="explorer-entropy">Entropy</span> of attention over that of uniform attention and
 <span class="explorer-residual">difference between the tokens</span> over the input's own, in
 the nearest cell (<span data-part="cell"></span>): means over {values["sizes"]["seeds"]} stacks with 95%
 intervals.</figcaption></figure>
</section>
</div>
<p class="explorer-counted" data-part="counted"></p>
<p class="visually-hidden" role="status" aria-live="polite" data-part="summary"></p>
<section class="explorer-theory" aria-labelledby="explorer-theory-title">
<h2 id="explorer-theory-title">What the theory says of the same spectrum</h2>
<div class="explorer-bar">{_select("length", "Tokens T", [(str(n), str(n)) for n in LENGTHS], str(LENGTH))}
{_select("dim", "Eigenvalues d", dims, "64")}</div>
<div class="explorer-profile" data-part="profile" role="img" aria-label="Signal propagation probability over the
 sequence; the text under the picture names its highest value"><div></div></div>
<p><span class="explorer-exact">━ exact law</span> <span>╌ Gaussian form.</span>
 <span data-part="profile-text"></span></p>
</section>
<noscript><p>This page computes in the browser: it needs JavaScript, which is switched off.</p></noscript>
</div>
<script src="../_static/vega/vega.js"></script>
<script src="{SCRIPTS}/values.js"></script>
<script src="{SCRIPTS}/marks.js"></script>
<script src="{SCRIPTS}/laws.js"></script>
<script src="{SCRIPTS}/explorer.js"></script>
"""


def _radios(name: str, label: str, choices: tuple[str, ...] | tuple[TokenLaw, ...]) -> str:
    options = "".join(
        f'<label><input type="radio" name="explorer-{name}" value="{choice}"{" checked" * (choice == choices[0])}>'
        f"<span>{html.escape(choice)}</span></label>"
        for choice in choices
    )
    return f'<div class="explorer-group" role="radiogroup" aria-label="{label}"><span>{label}</span>{options}</div>'


def _mark_box(key: str, group: MarkGroup) -> str:
    symbol = {"circle": "○", "square": "■", "triangle-up": "▲", "cross": "✚"}[group.shape]
    return (
        f'<label><input type="checkbox" data-part="show-{key}" checked><span class="explorer-symbol-{key}"'
        f' aria-hidden="true">{symbol}</span> {html.escape(group.name)}</label>'
    )


def _slider(name: str, label: str, low: float, high: float, step: float) -> str:
    return (
        f'<label class="explorer-slider"><span>{label}: <output data-part="{name}-value"></output></span>'
        f'<input type="range" data-part="{name}" min="{low:.4f}" max="{high:.4f}" step="{step:g}"></label>'
    )


def _select(name: str, label: str, choices: list[tuple[str, str]], start: str) -> str:
    options = "".join(
        f'<option value="{value}"{" selected" * (value == start)}>{words}</option>' for value, words in choices
    )
    return f'<label>{label} <select data-part="{name}">{options}</select></label>'
