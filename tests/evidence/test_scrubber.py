"""Pictures with a slider: what a page holds of them, with and without scripts, and what a browser makes of it."""

import base64
from html.parser import HTMLParser
from typing import Any

import matplotlib.pyplot as plt
import pytest
from browsing import running_browser, skip_without_chromium
from matplotlib.figure import Figure

from qkrepro.errors import ArgumentError
from qkrepro.evidence.scrubber import Scrubber, scrubber


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _figures(count: int) -> list[Figure]:
    figures = []
    for number in range(count):
        figure, axis = plt.subplots(figsize=(2, 1))
        axis.plot([0, number])
        figures.append(figure)
    return figures


def _made(still: int = -1) -> dict[str, str]:
    labels = [f"layer {n}" for n in range(3)]
    alts = [f"a line that ends at {n}" for n in range(3)]
    return scrubber(_figures(3), labels, alts, quantity="layer", still=still)._repr_mimebundle_()


def test_only_the_still_is_visible_before_the_slider_moves() -> None:
    page = _Tags()
    page.feed(_made(still=1)["text/html"])
    assert ["hidden" not in image for image in page.of("img")] == [False, True, False]
    assert page.of("input")[0]["value"] == "1"
    assert page.of("input")[0]["aria-valuetext"] == "layer 1"


def test_every_frame_has_its_label_and_its_text() -> None:
    page = _Tags()
    page.feed(_made()["text/html"])
    assert [image["data-label"] for image in page.of("img")] == ["layer 0", "layer 1", "layer 2"]
    assert [image["alt"] for image in page.of("img")] == [f"a line that ends at {n}" for n in range(3)]


def test_the_picture_without_html_is_the_still() -> None:
    made, page = _made(still=0), _Tags()
    page.feed(made["text/html"])
    assert page.of("img")[0]["src"] == f"data:image/png;base64,{made['image/png']}"
    assert base64.b64decode(made["image/png"]).startswith(b"\x89PNG")


def test_all_frames_are_of_one_size() -> None:
    page = _Tags()
    page.feed(_made()["text/html"])
    heads = [base64.b64decode(image["src"].partition(",")[2])[16:24] for image in page.of("img")]  # width and height
    assert len(heads) == 3
    assert len(set(heads)) == 1


def test_figures_are_closed() -> None:
    before = plt.get_fignums()
    _made()
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("pictures", "labels", "still", "what"),
    [(1, 1, 0, "two or more"), (2, 1, 0, "1 labels"), (2, 2, 2, "still must be an index of 2 frames, got 2")],
)
def test_frames_that_cannot_be_shown_are_refused(pictures: int, labels: int, still: int, what: str) -> None:
    with pytest.raises(ArgumentError, match=what):
        Scrubber([b"x"] * pictures, ["a"] * labels, ["b"] * pictures, quantity="layer", still=still)


@pytest.mark.slow
def test_the_slider_moves_by_keyboard_in_a_browser() -> None:
    skip_without_chromium()
    with running_browser() as browser:
        page = browser.new_page()
        page.set_content(_made()["text/html"])
        page.locator("input").focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert page.locator("img:visible").get_attribute("data-label") == "layer 1"
        assert page.locator("output").inner_text() == "layer 1"
        assert page.locator("input").get_attribute("aria-valuetext") == "layer 1"


@pytest.mark.slow
def test_without_scripts_there_is_the_still_and_no_slider() -> None:
    skip_without_chromium()
    with running_browser() as browser:
        page = browser.new_context(java_script_enabled=False).new_page()
        page.set_content(_made(still=1)["text/html"])
        assert page.locator("img:visible").count() == 1
        assert page.locator("input:visible").count() == 0
