"""Sentences about trained models: each follows from the table it is given, and says when there is none."""

import pandas as pd
import pytest

from qkrepro.chapters.plateaus import disease_text, entropy_text, gap_text, plateau_text
from qkrepro.chapters.theory_in_trained_models import broken_text, by_seed, direction_text, leaning, mean_text

NO_STARTS = pd.DataFrame(columns=["start", "seed", "early_entropy", "early_loss", "first_entropy", "last_entropy"])


def starts(**values: tuple[float, float]) -> pd.DataFrame:
    """Three seeds of each start with this early entropy and early loss, and a little noise that is shared."""
    rows = [
        {"start": start, "seed": seed, "early_entropy": entropy + seed / 100, "early_loss": loss + seed}
        for start, (entropy, loss) in values.items()
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


def test_mean_over_seeds_carries_its_interval_and_their_number():
    assert mean_text([]) == "not run"
    assert mean_text([0.25]) == "0.25 (one seed)"
    assert mean_text([-0.5, -0.5, -0.5]) == "−0.50 (−0.50 to −0.50, 3 seeds)"


def test_runs_of_one_seed_count_once():
    table = pd.DataFrame({"seed": [0, 0, 1], "kappa": [0, 1, 0], "value": [1.0, 3.0, 5.0]})
    assert by_seed(table, "value") == [2, 5]


def test_a_centre_near_the_middle_leans_neither_way():
    assert [leaning(centre) for centre in (0.4, 0.49, 0.51, 0.6)] == ["early", "even", "even", "late"]


def test_a_prediction_of_the_other_side_is_told_with_its_mirror():
    row = {"centre_predicted": 0.4, "centre_nonsaturated": 0.6, "total_variation": 0.3, "mirrored_variation": 0.1}
    assert "looks the wrong way" in direction_text(pd.DataFrame([row]))
    assert "nearer, 0.10 against 0.30" in direction_text(pd.DataFrame([row]))
    assert "lean alike" in direction_text(pd.DataFrame([row | {"centre_predicted": 0.6}]))
    assert direction_text(pd.DataFrame(columns=list(row))) == "not run"


@pytest.mark.parametrize(
    ("walk", "normal", "said"),
    [
        (0.3, 0.01, "it is the walk that fails"),
        (0.01, 0.3, "it is the normal law of the logits that fails"),
        (0.3, 0.3, "both the walk and the normal law"),
        (0.01, 0.01, "neither the walk nor the normal law"),
    ],
)
def test_the_assumption_that_fails_is_the_one_whose_law_is_far_away(walk, normal, said):
    table = pd.DataFrame({"law": ["drawn walk", "normal"], "total_variation": [walk, normal]})
    assert broken_text(table, 0.2).startswith(said)


def test_low_entropy_decides_only_where_both_starts_of_low_entropy_are_slow():
    both = starts(xavier=(3.0, 6.0), collapsed=(0.2, 6.5), concentrated=(0.6, 6.2))
    one = starts(xavier=(3.0, 6.0), collapsed=(0.2, 6.5), concentrated=(0.6, 5.8))
    assert disease_text(both).endswith("Low entropy and slow learning go together here")
    assert "slower than Xavier: dispersed. Low entropy does not decide here" in disease_text(one)
    assert disease_text(both[both["seed"] == 0]) == "not run"
    assert disease_text(NO_STARTS) == "not run"


def test_gaps_and_entropies_are_told_start_by_start():
    gaps = pd.DataFrame({"start": ["collapsed"] * 3, "seed": range(3), "difference": [0.1, 0.1, 0.1]})
    assert gap_text(gaps) == "dispersed +0.100 (+0.100 to +0.100, 3 seeds): higher"
    table = pd.DataFrame({"start": ["xavier"], "seed": [0], "first_entropy": [4.0], "last_entropy": [2.5]})
    assert entropy_text(table) == "Xavier 4.00 to 2.50"
    assert (gap_text(gaps.iloc[:0]), entropy_text(NO_STARTS)) == ("not run", "not run")


def test_plateaus_are_counted_by_start_and_the_longest_is_named():
    table = pd.DataFrame(
        {"start": ["xavier", "collapsed"], "seed": [0, 0], "length": [40.0, 0.0], "begin": [80.0, float("nan")]}
    ).assign(loss=5.86, slowest=0.5)
    assert "1 of 2 runs have a plateau (Xavier 1 of 1, dispersed 0 of 1)" in plateau_text(table)
    assert "lasts 40 updates, from update 80 at a loss of 5.86 nats (Xavier, seed 0)" in plateau_text(table)
    assert plateau_text(table.assign(length=0.0)) == "none of 2 runs has a plateau"
    assert plateau_text(table.iloc[:0]) == "not run"
