"""A threshold shows how the verdict moves with it, in a picture and in words."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from qkrepro.evidence.claims import Claim, Threshold, Verdict, sensitivity
from qkrepro.publishing.threshold_figures import png_of, threshold_alternative, threshold_figure


def _judge(tables, limit=0.5):
    holds = [bool(value <= limit) for value in tables["t"]["x"]]
    return Verdict("reproduced" if all(holds) else "partly", f"{sum(holds)}", sum(holds), len(holds))


THRESHOLD = Threshold("total variation", 0.5, (0.1, 0.5, 0.9), _judge)
CLAIM = Claim("c", "chapter", "ours", "s", "r", "f", ("t",), _judge, threshold=THRESHOLD)
TABLES = {"t": pd.DataFrame({"x": [0.2, 0.6]})}


def test_the_verdict_is_judged_at_every_threshold_that_is_tried():
    table = sensitivity(CLAIM, TABLES)
    assert table["holds"].tolist() == [0, 1, 2]
    assert table["outcome"].tolist() == ["partly", "partly", "reproduced"]
    assert table.set_index("threshold").loc[THRESHOLD.value, "holds"] == CLAIM.judge(TABLES).holds


def test_the_words_name_each_outcome_with_its_range():
    words = threshold_alternative(CLAIM, sensitivity(CLAIM, TABLES))
    assert words.endswith("judged at 0.5: partly from 0.1 to 0.5, reproduced at 0.9.")
    elsewhere = threshold_alternative(replace(CLAIM, setting="a grid of ours"), sensitivity(CLAIM, TABLES))
    assert elsewhere.endswith("judged at 0.5: holds in part from 0.1 to 0.5, holds at 0.9.")


def test_the_picture_has_a_point_per_threshold_at_the_share_of_cases_and_the_same_bytes_again():
    figure = threshold_figure(CLAIM, sensitivity(CLAIM, TABLES))
    points = np.vstack([collection.get_offsets() for collection in figure.axes[0].collections])
    assert sorted(points.tolist()) == [[0.1, 0.0], [0.5, 0.5], [0.9, 1.0]]
    made = png_of(figure)
    assert made == png_of(threshold_figure(CLAIM, sensitivity(CLAIM, TABLES)))
    assert np.asarray(Image.open(io.BytesIO(made)))[0, 0, 3] == 0  # transparent


def test_a_claim_without_a_threshold_has_none():
    plain = Claim("c", "chapter", "ours", "s", "r", "f", ("t",), _judge)
    assert sensitivity(plain, TABLES).empty
    with pytest.raises(ValueError, match="claim c has no threshold"):
        threshold_figure(plain, sensitivity(plain, TABLES))
