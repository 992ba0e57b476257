"""Cuts of a figure separate what is drawn: tried on figures whose panels are known, by the ink of the saved picture."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from qkrepro.evidence.panels import KEY, panel_pieces, with_text
from qkrepro.evidence.style import use_style


@pytest.fixture(autouse=True)
def style() -> None:
    with plt.rc_context(), plt.style.context("default"):
        use_style()
        yield
    plt.close("all")


def saved(figure: Figure) -> tuple[np.ndarray, dict]:
    """Where the saved picture is not transparent, (height, width), and the cuts."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi, bbox_inches="tight")
    return np.asarray(Image.open(file).convert("RGBA"))[:, :, 3] > 0, panel_pieces(figure)


def assert_pieces_hold_all_ink_and_cut_through_none(drawn: np.ndarray, cuts: dict) -> None:
    count = np.zeros(drawn.shape, dtype=int)
    for *_, (left, top, right, bottom) in cuts["pieces"]:
        assert 0 <= left < right <= drawn.shape[1]
        assert 0 <= top < bottom <= drawn.shape[0]
        count[top:bottom, left:right] += 1
        edge = np.ones((bottom - top, right - left), dtype=bool)
        edge[1:-1, 1:-1] = False
        inside = drawn[top:bottom, left:right]
        assert not (inside & edge).any()  # nothing crosses the edge
    assert count.max() == 1
    if not cuts["title"]:
        assert not (drawn & (count == 0)).any()


def test_two_panels_are_two_pieces_of_about_half_the_picture() -> None:
    figure, axes = plt.subplots(1, 2)
    axes[0].set(title="Left", ylabel="a", xlabel="x")
    axes[1].set(title="Right", ylabel="b", xlabel="x")
    drawn, cuts = saved(figure)
    assert [len(piece) for piece in cuts["pieces"]] == [1, 1]
    assert cuts["title"] == ""
    for *_, box in cuts["pieces"]:
        assert 0.4 < (box.right - box.left) / drawn.shape[1] < 0.5
    assert_pieces_hold_all_ink_and_cut_through_none(drawn, cuts)


def test_four_panels_are_two_columns_and_the_right_one_gets_the_scale_that_it_shares() -> None:
    figure, axes = plt.subplots(2, 2, sharex=True, sharey=True)
    axes[0, 0].plot([1, 2], label="line")
    axes[1, 0].set(xlabel="x", ylabel="y")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    drawn, cuts = saved(figure)
    left, right, legend = cuts["pieces"]
    assert [len(piece) for piece in (left, right, legend)] == [1, 2, 1]
    scale = right[0]
    numbers = [label.get_window_extent() for label in axes[0, 0].get_yticklabels() if label.get_text()]
    assert scale.left == left[0].left
    assert scale.right - scale.left > max(number.width for number in numbers)
    assert scale.right <= axes[0, 0].get_window_extent().x0 - figure.get_tightbbox().x0 * figure.dpi + 20
    assert legend[0].top >= left[0].bottom
    assert_pieces_hold_all_ink_and_cut_through_none(drawn, cuts)


def test_a_colour_bar_stays_with_its_panel_and_a_common_one_below_is_a_strip() -> None:
    figure, axes = plt.subplots(1, 2)
    image = [axis.imshow(np.eye(3)) for axis in axes][1]
    figure.colorbar(image, ax=axes[1])
    drawn, cuts = saved(figure)
    assert len(cuts["pieces"]) == 2
    assert_pieces_hold_all_ink_and_cut_through_none(drawn, cuts)
    figure, axes = plt.subplots(1, 2)
    image = [axis.imshow(np.eye(3)) for axis in axes][1]
    figure.colorbar(image, ax=axes, location="bottom")
    drawn, cuts = saved(figure)
    assert len(cuts["pieces"]) == 3
    strip = cuts["pieces"][-1][0]
    assert strip.right - strip.left > 0.8 * drawn.shape[1]
    assert_pieces_hold_all_ink_and_cut_through_none(drawn, cuts)


def test_a_common_title_is_text_and_one_with_a_formula_is_a_strip() -> None:
    figure, _ = plt.subplots(1, 2)
    figure.suptitle("What is found,\nin two lines")
    drawn, cuts = saved(figure)
    assert cuts["title"] == "What is found, in two lines"
    assert len(cuts["pieces"]) == 2
    figure, _ = plt.subplots(1, 2)
    figure.suptitle("$x$ grows")
    drawn, cuts = saved(figure)
    assert cuts["title"] == ""
    assert len(cuts["pieces"]) == 3
    assert_pieces_hold_all_ink_and_cut_through_none(drawn, cuts)


def test_a_wide_panel_above_two_stands_first() -> None:
    figure, _ = plt.subplot_mosaic("AA;BC")
    drawn, cuts = saved(figure)
    first, *others = (piece[-1] for piece in cuts["pieces"])
    assert first.right - first.left > 0.9 * drawn.shape[1]
    assert [box.top > first.bottom for box in others] == [True, True]
    assert_pieces_hold_all_ink_and_cut_through_none(drawn, cuts)


def test_one_panel_and_panels_that_reach_into_each_other_are_not_cut() -> None:
    assert saved(plt.subplots()[0])[1] == {}
    figure, axes = plt.subplots(1, 2)
    axes[0].set_title("a title that is so long that it reaches over the panel beside it")
    assert saved(figure)[1] == {}


def test_a_picture_keeps_its_pixels_and_gets_its_text() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (3, 2), (1, 2, 3, 4)).save(file, format="png")
    again = Image.open(io.BytesIO(with_text(file.getvalue(), KEY, '{"a":"b \\u00e9"}')))
    assert again.info[KEY] == '{"a":"b \\u00e9"}'
    assert again.getpixel((2, 1)) == (1, 2, 3, 4)
