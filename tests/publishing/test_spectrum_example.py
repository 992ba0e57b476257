"""The example of `qkrepro spectrum` on the page for one's own model is the command's own table, counted."""

import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from qkrepro.models.minilm import minilm_folder
from qkrepro.models.spectrum_columns import SHOWN
from qkrepro.models.spectrum_report import qk_table
from qkrepro.publishing.spectrum_example import spectrum_page, summary, write_spectrum_example


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("example")
    write_spectrum_example(place)
    return place


def test_the_page_shows_every_head_of_minilm_and_explains_every_printed_column(folder: Path) -> None:
    page, table = (folder / "spectrum.md").read_text(encoding="utf-8"), qk_table(minilm_folder())
    assert page == spectrum_page(table)
    first, whole = (block.splitlines() for block in re.findall(r"```text\n(.*?)\n```", page, re.DOTALL))
    assert len(whole) == 1 + len(table)
    assert first == whole[: len(first)]
    explained = re.findall(r"^\| `([^`]+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert [name for _, name in explained] == [name for name in SHOWN if name in table]
    assert whole[0].split() == " ".join(head for head, _ in explained).split()


def test_the_picture_has_no_ground_of_its_own(folder: Path) -> None:
    picture = Image.open(folder / "spectrum.png").convert("RGBA")
    assert picture.getpixel((0, 0))[3] == 0
    assert 1100 < picture.width < 1400  # twice what a page shows


def test_the_summary_counts_heads_beyond_chance() -> None:
    columns = {"trace_z": [3.0, -2.5, 1.0], "trace": [1.0, -1.0, 0.2], "relative_variance": [0.5, 4.0, 9.0]}
    text = summary(pd.DataFrame(columns | {"relative_variance_percentile": [0.0, 2.4, 50.0]}))
    counts = [row.split("|")[2].strip() for row in text.splitlines()[2:]]
    assert counts == ["3", "1", "1", "2", "0.5"]
