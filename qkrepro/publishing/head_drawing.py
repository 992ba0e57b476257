"""A drawing of one attention head: tokens, query and keys, logits, attention, with the numbers of a small example.

It is an SVG within the page, so its text and lines take the colour of the page, light or dark, and a phone can read it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qkrepro.theory.attention import softmax_attention

WORDS = ("the", "cat", "sat", "on", "the", "mat")
STEP, LEFT, WIDTH, HEIGHT = 56, 52, 400, 430  # pixels between tokens, of the first one's middle, of the drawing


def example_head(seed: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Return the query (d_head), the keys (T, d_head) and the centred logits (T) of random weights, float64.

    The tokens are a random walk of the width 4, one for each of `WORDS`; the last one asks.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(WORDS), 4, generator=generator, dtype=torch.float64).cumsum(0)  # (T, d_model)
    w_q, w_k = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) / 2  # (d_head, d_model) each
    q, k = w_q @ x[-1], x @ w_k.mT  # (d_head), (T, d_head)
    return q, k, k @ q


def head_drawing() -> str:
    """Return the drawing as HTML: a figure with an SVG, its words for who cannot see it, and a caption."""
    q, k, logits = example_head()
    attention = softmax_attention(logits, math.sqrt(len(q)))
    tallest = 58 / float(attention.max())
    middle = [LEFT + STEP * i for i in range(len(WORDS))]
    last, scale = middle[-1], 42 / float(logits.abs().max())
    parts = [_text(8, 16, "tokens", "start")]
    for x, word in zip(middle, WORDS, strict=True):
        box = "box query" if x == last else "box"
        parts += [f'<rect class="{box}" x="{x - 24}" y="26" width="48" height="28" rx="5"/>', _text(x, 45, word)]
        parts.append(_arrow(x - (8 if x == last else 0), 56, 88))
    parts += [
        _arrow(last + 12, 56, 88, "query"),
        _text(8, 76, _weights("k"), "start"),
        _text(last + 16, 76, _weights("q"), "start"),
    ]
    parts += [_vector(x - (8 if x == last else 0), 92, key) for x, key in zip(middle, k, strict=True)]
    parts += [_vector(last + 12, 92, q, "query"), _text(8, 152, "keys; the last token also makes the query", "start")]
    parts += [_text(8, 186, "logit: query · key", "start"), '<line class="zero" x1="20" x2="376" y1="240" y2="240"/>']
    for x, logit in zip(middle, logits.tolist(), strict=True):
        height = abs(logit) * scale
        parts.append(_bar(x, 240 - max(logit, 0) * scale, height))
        parts.append(_text(x, 240 - logit * scale - 5 if logit > 0 else 240 + height + 14, _signed(logit)))
    parts += [_arrow(200, 300, 324), _text(212, 317, "divide by λ, softmax", "start")]
    parts += [_text(8, 342, "attention", "start"), '<line class="zero" x1="20" x2="376" y1="410" y2="410"/>']
    for x, weight in zip(middle, attention.tolist(), strict=True):
        parts.append(_bar(x, 410 - tallest * weight, tallest * weight, "query"))
        parts.append(_text(x, 425, f"{weight:.0%}"))
    shares = ", ".join(f"{word} {weight:.0%}" for word, weight in zip(WORDS, attention.tolist(), strict=True))
    alt = (
        "One head in four steps. Six tokens, a sentence. Each is multiplied by W_k and becomes a key; the last is "
        f"also multiplied by W_q, which makes the query. The query times each key is a logit. Softmax gives: {shares}."
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{alt}">{"".join(parts)}</svg>'
    caption = (
        "One head, drawn with random weights: the last token asks, every token answers with a key, and softmax makes "
        "shares of the answers. Which key fits which query is decided by one matrix, the product of both projections."
    )
    return f'<figure class="drawing">{svg}<figcaption>{caption}</figcaption></figure>\n'


def _weights(name: str) -> str:
    return f'× W<tspan dy="3" font-size="10">{name}</tspan>'


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{words}</text>'


def _arrow(x: float, top: float, bottom: float, kind: str = "") -> str:
    head = f"M{x - 4:.0f} {bottom - 6:.0f}L{x:.0f} {bottom:.0f}L{x + 4:.0f} {bottom - 6:.0f}"
    return f'<path class="arrow {kind}" d="M{x:.0f} {top:.0f}V{bottom:.0f}{head}"/>'


def _bar(x: float, top: float, height: float, kind: str = "") -> str:
    return f'<rect class="bar {kind}" x="{x - 15:.0f}" y="{top:.1f}" width="30" height="{height:.1f}"/>'


def _vector(x: float, top: float, entries: Tensor, kind: str = "") -> str:
    """Return a vector as a column of cells, the fuller the larger the entry."""
    shades: Sequence[float] = (0.15 + 0.85 * entries.abs() / entries.abs().max()).tolist()
    return "".join(
        f'<rect class="cell {kind}" x="{x - 7:.0f}" y="{top + 15 * i:.0f}" width="14" height="14" '
        f'fill-opacity="{shade:.2f}"/>'
        for i, shade in enumerate(shades)
    )


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")
