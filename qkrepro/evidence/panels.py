"""Where a figure can be cut so that a phone shows its panels one below the other.

A picture of the book carries its own cuts: `panel_pieces` reads them off the figure when it is saved, and they travel
as the text "Panels" of the PNG file. On a narrow screen a page shows the same file once for every piece, in the order
of reading; nothing is drawn twice. Source: the site's extension `stacked_panels`, and the page's script.
"""

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

KEY = "Panels"  # of the PNG's text
MARGIN = 5  # pixels around what is drawn, for the ends of its lines
HALF_A_LABEL = 0.065  # inches that the lowest number of a vertical scale reaches below its axis


class Box(NamedTuple):
    """A rectangle of the picture, in pixels from its left and its top."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class _Part:
    """Something that is drawn: a panel, or what goes with panels (a colour bar or a text), or a legend."""

    box: Box
    axes: Axes | None = None
    attached: bool = False  # stands in no column of its own


def panel_pieces(figure: Figure) -> dict[str, Any]:
    """Return how a figure that was saved just now is cut, empty when it cannot be or has no panels side by side.

    "title": what stands over all panels, as text. "pieces": in the order of reading, each a list of rectangles of the
    picture (saved with the tight box) that stand beside each other; the first of two is the scale that a panel shares
    with the one at the left. A piece is a column of panels with everything that belongs to it, or a strip (a legend, a
    common colour bar).
    """
    whole = figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])
    width, height = (int(length * figure.dpi) for length in whole.size)

    def box(artist: Any) -> Box | None:
        extent = artist.get_tightbbox()
        if extent is None or not artist.get_visible() or not extent.width:
            return None
        left, right = (round(x - whole.x0 * figure.dpi) for x in (extent.x0, extent.x1))
        top, bottom = (round(whole.y1 * figure.dpi - y) for y in (extent.y1, extent.y0))
        return Box(
            max(left - MARGIN, 0), max(top - MARGIN, 0), min(right + MARGIN, width), min(bottom + MARGIN, height)
        )

    parts = list(_parts(figure, box))
    pieces = list(_cut(parts))
    if sum(any(part.axes for part in piece) for piece in pieces) < 2:
        return {}
    frames = {part.axes: box(part.axes.patch) for part in parts if part.axes}
    below = round(HALF_A_LABEL * figure.dpi)
    rectangles = [[*_scale(piece, pieces, frames, below), _around(piece)] for piece in pieces]
    title = figure.get_suptitle()
    return {"title": "" if "$" in title else " ".join(title.split()), "pieces": rectangles}


def with_text(png: bytes, key: str, text: str) -> bytes:
    """Return a PNG file with a text of ASCII characters in it, everything else as it was."""
    chunk = b"tEXt" + key.encode("ascii") + b"\0" + text.encode("ascii")
    return png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def store_panels() -> None:
    """Let the pictures of a notebook carry their cuts; does nothing outside one."""
    from IPython import get_ipython
    from IPython.core.pylabtools import print_figure
    from matplotlib import pyplot as plt

    shell = get_ipython()
    if shell is None:
        return

    def picture(figure: Figure) -> Any:
        png = print_figure(figure)
        cuts = panel_pieces(figure) if png else {}
        whole = with_text(png, KEY, json.dumps(cuts, separators=(",", ":"))) if cuts else png
        return base64.b64encode(whole).decode("ascii") if whole else None

    plt.switch_backend(plt.get_backend())  # which sets its own way to show a figure when it is loaded
    shell.display_formatter.formatters["image/png"].for_type(Figure, picture)


def _parts(figure: Figure, box: Callable[[Any], Box | None]) -> Iterator[_Part]:
    shown = [artist for axis in figure.axes for artist in (*axis.images, *axis.collections)]
    bars = [artist.colorbar.ax for artist in shown if artist.colorbar]
    for axis in figure.axes:
        if place := box(axis):
            yield _Part(place, None if axis in bars else axis, attached=axis in bars)
    title = figure.get_suptitle()
    for text in figure.texts:
        as_words = text.get_text() == title and "$" not in title
        if not as_words and (place := box(text)):
            yield _Part(place, attached=True)
    for legend in figure.legends:
        if place := box(legend):
            yield _Part(place)


def _cut(parts: Sequence[_Part]) -> Iterator[list[_Part]]:
    """Yield columns where the parts fall into columns; else of each row by itself, rows that do so together in one."""
    columns = _columns(parts)
    rows = _runs(parts, lambda box: (box.top, box.bottom))
    if len(columns) > 1 or len(rows) == 1:
        yield from columns
        return
    together: list[_Part] = []
    for row in [*rows, []]:
        if len(_columns(row)) > 1 and (not together or len(_columns([*together, *row])) > 1):
            together += row
            continue
        if together:
            yield from _columns(together)
        together = row if len(_columns(row)) > 1 else []
        if row and not together:
            yield row


def _columns(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Return the parts in columns; a colour bar or a text beside panels goes with the column before or after it."""
    found: list[list[_Part]] = []
    waiting: list[_Part] = []
    for run in _runs(parts, lambda box: (box.left, box.right)):
        if not all(part.attached for part in run):
            found.append([*waiting, *run])
            waiting = []
        elif found:
            found[-1] += run
        else:
            waiting += run
    return found or [waiting]


def _runs(parts: Iterable[_Part], span: Callable[[Box], tuple[int, int]]) -> list[list[_Part]]:
    """Return the parts in groups whose spans do not touch, in order."""
    groups: list[list[_Part]] = []
    end = 0
    for part in sorted(parts, key=lambda part: span(part.box)):
        start, stop = span(part.box)
        if groups and start < end:
            groups[-1].append(part)
        else:
            groups.append([part])
        end = max(end, stop)
    return groups


def _around(piece: Iterable[_Part]) -> Box:
    lefts, tops, rights, bottoms = zip(*(part.box for part in piece), strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def _scale(
    piece: Sequence[_Part], pieces: Sequence[Sequence[_Part]], frames: Mapping[Axes, Box | None], below: int
) -> list[Box]:
    """Return where the vertical scale stands that the panels of a piece share with an earlier one and do not repeat."""
    panels = [part.axes for part in piece if part.axes]
    bare = panels and not any(panel.yaxis.get_tick_params().get("labelleft", True) for panel in panels)
    for other in pieces[: pieces.index(piece)] if bare else []:
        owners = [part.axes for part in other if part.axes]
        inside = [frame for owner in owners if (frame := frames[owner])]
        shared = all(any(panel.get_shared_y_axes().joined(panel, owner) for owner in owners) for panel in panels)
        if shared and inside:
            right, bottom = min(box.left for box in inside), max(box.bottom for box in inside) + below
            scale = Box(_around(other).left, _around(piece).top, right, bottom)
            return [scale] if right - scale.left > 2 * MARGIN else []
    return []
