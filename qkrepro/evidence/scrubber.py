"""Pictures that a reader moves through with a slider, where depth or time is the point, and a still without scripts.

    yield one figure, changed for every layer, then
    scrubber(figures, [f"layer {n}" for n in layers], alts, quantity="layer", still=-1)

as the last line of a cell. The slider is the browser's own: arrow keys, Home and End move it, nothing plays by itself
and nothing glides, so there is no motion to reduce. Only the still is visible without scripts, and it is the picture of
formats that show no HTML. The frames stand in the page, a few hundred kB in all at most.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from qkrepro.errors import ArgumentError

DPI = 144  # of a frame; less than of a figure, since there are many
# `this` is the slider: it shows the frame of its value, hides the others, and says to a screen reader which one it is.
MOVE = (
    "var frames=this.closest('.scrubber').querySelectorAll('.scrubber-frame'),now=+this.value;"
    "frames.forEach(function(frame,k){frame.hidden=k!==now});"
    "this.nextElementSibling.textContent=frames[now].dataset.label;"
    "this.setAttribute('aria-valuetext',frames[now].dataset.label)"
)


class Scrubber:
    """A sequence of pictures with a slider; `scrubber` makes it of figures."""

    def __init__(
        self, pictures: Sequence[bytes], labels: Sequence[str], alts: Sequence[str], *, quantity: str, still: int = -1
    ) -> None:
        """Keep the frames.

        Parameters
        ----------
        pictures: PNG files, all of one size.
        labels: what the slider says at each of them, such as "layer 3".
        alts: what each of them shows, for a reader who cannot see it.
        quantity: what the slider moves, such as "layer".
        still: index of the frame that is shown first, and alone without scripts; negative from the end.

        Raises ArgumentError unless there are two frames or more, a label and a text for each, and a still among them.
        """
        count = len(pictures)
        if count < 2 or not count == len(labels) == len(alts):
            raise ArgumentError(f"frames must be two or more with a label and a text each, got {count} pictures, "
                                f"{len(labels)} labels and {len(alts)} texts")  # fmt: skip
        if not -count <= still < count:
            raise ArgumentError(f"still must be an index of {count} frames, got {still}")
        self.pictures, self.labels, self.alts, self.quantity = list(pictures), list(labels), list(alts), quantity
        self.still = still % count

    def __repr__(self) -> str:
        """Return how many pictures there are, and of what."""
        return f"{len(self.pictures)} pictures by {self.quantity}, {self.labels[0]} to {self.labels[-1]}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Return the page's HTML, the still as PNG, and plain text."""
        return {"text/html": self._html(), "image/png": _base64(self.pictures[self.still]), "text/plain": repr(self)}

    def _html(self) -> str:
        frames = "".join(
            f'<img class="scrubber-frame dark-light" src="data:image/png;base64,{_base64(picture)}" '
            f'data-label="{escape(label)}" alt="{escape(alt)}"{"" if number == self.still else " hidden"}>'
            for number, (picture, label, alt) in enumerate(zip(self.pictures, self.labels, self.alts, strict=True))
        )
        now = escape(self.labels[self.still])
        return (
            f'<div class="scrubber">{frames}<label class="scrubber-control">{escape(self.quantity)} '
            f'<input type="range" min="0" max="{len(self.pictures) - 1}" step="1" value="{self.still}" '
            f'autocomplete="off" aria-valuetext="{now}" oninput="{escape(MOVE)}" '
            'style="width:min(60%,26rem);vertical-align:middle"> '
            f"<output>{now}</output></label>"
            "<noscript><style>.scrubber-control{display:none}</style></noscript></div>"
        )


def scrubber(
    figures: Iterable[Figure], labels: Sequence[str], alts: Sequence[str], *, quantity: str, still: int = -1
) -> Scrubber:
    """Return the figures as frames of a `Scrubber`, and close them.

    figures: of one size, drawn with the same axes, so that nothing jumps; also one figure that changes between the
    frames, which is quicker, since it is laid out once. labels, alts, quantity, still: as `Scrubber` takes them. Raises
    ArgumentError as it does.
    """
    pictures = []
    for figure in figures:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI, bbox_inches=figure.bbox_inches)  # the whole canvas in every frame
        figure.set_layout_engine("none")
        plt.close(figure)
        pictures.append(file.getvalue())
    return Scrubber(pictures, labels, alts, quantity=quantity, still=still)


def _base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode("ascii")
