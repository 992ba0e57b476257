"""Each rule gives the verdict it states, and data that contradict the claim flip it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from agreement import rule_for, text_difference

from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.evidence.numbers import book_root, load_numbers
from qkrepro.evidence.page import show_verdict
from qkrepro.publishing.claims_pages import STORED, all_claims, changed_verdicts, verdicts, write_pages

SEEDS = np.arange(5)
SETTINGS = ("spread", "mean_scaled", "dispersion", "spread_scaled", "kappa", "temperature", "best_epoch", "last_epoch")
JITTER = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
ABSTRACT = (
    "the small eigenspectrum variance prevents both rank and entropy collapse, leading to better model expressivity "
    "and trainability. reveal that a small eigenspectrum variance leads attention to be localized. making the learning "
    "dynamics more likely to be trapped in plateaus."
)


def table(**columns):
    return pd.DataFrame(columns)


def linearisation(power, at_one):
    spread = np.array([0.01, 0.03, 0.1, 1.0])
    return {"error": table(spread=spread, error=at_one * spread**power)}


def xavier(mean, ratio):
    return {"xavier": table(eigen_mean=mean + JITTER, frobenius_sq=ratio + JITTER, expected_frobenius_sq=np.ones(5))}


def law(exact):
    return {"profiles": table(case=["a"] * 5, exact=[exact] * 5, low=[0.4] * 5, high=[0.6] * 5)}


def limit(error, second=0.0):
    columns = {"case": ["a", "b", "c"], "singular_share": [0.05, 0.08, 0.9], "exact": [0.5] * 3}
    return {"profiles": table(**columns, finite=[0.5 + error, 0.5 + second, 0.9])}


def regimes(centre):
    columns = {"case": ["late", "middle", "mirror", "broad", "all pass"], "level": [0.5, 0.2, 0.5, 0.4, 1.0]}
    return {"regimes": table(**columns, index=[0.5, 0.7, 0.5, 0.02, 0.0], centre=centre)}


def antisymmetric(last):
    return {"profiles": table(case=["antisymmetric"] * 3, exact=[0.3, 0.3, last])}


def plane(index_positive, index_negative):
    cells = [(mean, d) for mean in (-4.0, 0.0, 4.0) for d in (0.1, 1.0, 10.0)]
    index = [*index_negative, 0.0, 0.0, 0.0, *index_positive]
    return {"plane": table(mean_scaled=[c[0] for c in cells], dispersion=[c[1] for c in cells], index=index)}


def counterexamples(index):
    return {"counterexamples": table(name=["small", "large"], relative_variance=[0.0, 3.0], index=index)}


def agreement(*high):
    values = np.array(high)
    return {
        "agreement": table(setting=[str(h) for h in high], total_variation=values - 0.05, low=values - 0.1, high=values)
    }


def closed_forms(*simulated):
    n = len(simulated)
    return {"closed_forms": table(form=["f"] * n, predicted=[1.0] * n, simulated=simulated, standard_error=[0.001] * n)}


def depth(*pairs):
    rows = [
        {
            "setting": str(k),
            "tokens": "walk",
            "seed": s,
            "spectrum": name,
            "residual": r + JITTER[s],
            "input_residual": 0.6,
        }
        for k, pair in enumerate(pairs)
        for name, r in zip(("concentrated", "dispersed"), pair, strict=True)
        for s in SEEDS
    ]
    return {"depth_end": pd.DataFrame(rows)}


def entropy(positive, negative):
    rows = [
        {"tokens": "walk", "mean_scaled": m, "dispersion": d, "seed": s, "entropy_ratio": e + JITTER[s]}
        for m, pair in ((4.0, positive), (-4.0, negative))
        for d, e in zip((0.1, 10.0), pair, strict=True)
        for s in SEEDS
    ]
    return {"entropy": pd.DataFrame(rows)}


def safe(positive, negative):
    rows = [
        {
            "setting": "8 layers",
            "tokens": "walk",
            "mean_scaled": m,
            "dispersion": d,
            "seed": s,
            "entropy_ratio": e + JITTER[s],
            "residual_ratio": r + JITTER[s],
        }
        for m, cells in ((4.0, positive), (-4.0, negative))
        for d, (e, r) in zip((0.1, 10.0), cells, strict=True)
        for s in SEEDS
    ]
    return {"safe": pd.DataFrame(rows)}


def paired(value, gaps):
    n = len(gaps)
    kappa = [0.0] * n + [0.01] * n
    values = {value: [100.0] * n + [100.0 + g for g in gaps]}
    return {
        "paired": table(seed=[*range(n)] * 2, kappa=kappa, best_epoch=5.0, last_epoch=8.0, corpus_words=8192, **values)
    }


def kappas(sign):
    rows = [
        {"seed": s, "kappa": k, "eigen_variance": k, "valid_perplexity": 100 + sign * k * (1 + 0.1 * s)}
        for s in range(3)
        for k in range(5)
    ]
    return {"kappas": pd.DataFrame(rows).assign(best_epoch=1.0, last_epoch=1.0, corpus_words=8192)}


def starts(collapsed, concentrated):
    gains = {"xavier": 0.0, "collapsed": collapsed, "concentrated": concentrated}
    rows = [
        {"seed": s, "start": name, "early_loss": 6 + gain * (1 + 0.1 * s)}
        for name, gain in gains.items()
        for s in range(3)
    ]
    return {"starts": pd.DataFrame(rows)}


def trained(*distance):
    return {"trained": table(kappa=[0.0] * len(distance), total_variation=distance)}


CASES = [
    ("linearisation-first-order", linearisation(2, 0.05), linearisation(2, 0.5), linearisation(1, 0.05)),
    ("xavier-spectrum", xavier(0, 1), xavier(0, 2), xavier(1, 2)),
    ("exact-law", law(0.5), None, law(0.7)),
    ("gaussian-limit", limit(0.01), limit(0.01, 0.2), limit(0.1, 0.2)),
    ("regimes", regimes([0.75, 0.6, 0.25, 0.5, 0.5]), regimes([0.5, 0.6, 0.25, 0.5, 0.5]), None),
    ("antisymmetric-head", antisymmetric(0.3), None, antisymmetric(0.4)),
    (
        "variance-localizes",
        plane([0.5, 0.4, 0.1], [0.5, 0.4, 0.1]),
        plane([0.5, 0.4, 0.1], [0.1, 0.4, 0.5]),
        plane([0.2, 0.1, 0.0], [0.1, 0.4, 0.5]),
    ),
    ("eigenvalue-variance-decides", counterexamples([0.5, 0.2]), None, counterexamples([0.2, 0.5])),
    ("softmax-localizes-likewise", agreement(0.1, 0.15), agreement(0.1, 0.9), agreement(0.8, 0.9)),
    ("softmax-closed-forms", closed_forms(1.0, 1.001), closed_forms(1.0, 2.0), closed_forms(3.0, 2.0)),
    ("prevents-rank-collapse", depth((0.5, 0.1)), depth((0.5, 0.1), (0.5, 0.5)), depth((0.2, 0.1))),
    (
        "prevents-entropy-collapse",
        entropy((0.8, 0.2), (0.7, 0.3)),
        entropy((0.8, 0.2), (0.2, 0.8)),
        entropy((0.3, 0.2), (0.2, 0.8)),
    ),
    (
        "entropy-bound-informs",
        {"bound": table(entropy=[2.0], bound=[1.0])},
        {"bound": table(entropy=[2.0, 2.0], bound=[1.0, 0.0])},
        {"bound": table(entropy=[2.0], bound=[2.1])},
    ),
    (
        "prevents-both",
        safe([(0.8, 0.7), (0.2, 0.3)], [(0.8, 0.7), (0.2, 0.3)]),
        safe([(0.8, 0.7), (0.2, 0.3)], [(0.3, 0.0), (0.2, 0.3)]),
        safe([(0.8, 0.2), (0.2, 0.3)], [(0.8, 0.7), (0.8, 0.7)]),
    ),
    (
        "locater-improves-perplexity",
        paired("test_perplexity", [-2, -2.1, -1.9]),
        paired("test_perplexity", [-9, 1, 0.5]),
        paired("test_perplexity", [2, 2.1, 1.9]),
    ),
    (
        "locater-raises-entropy",
        paired("valid_entropy", [2, 2.1, 1.9]),
        paired("valid_entropy", [9, -1, 0.5]),
        paired("valid_entropy", [-2, -2.1, -1.9]),
    ),
    ("perplexity-follows-variance", kappas(+1), None, kappas(-1)),
    ("theory-sees-trained-models", trained(0.1), trained(0.1, 0.5), trained(0.5)),
    ("low-entropy-traps", starts(0.5, 0.5), starts(0.5, -0.5), starts(-0.5, -0.5)),
]


def test_every_claim_has_a_case_that_supports_it_and_one_that_flips_it():
    assert {case[0] for case in CASES} <= {entry.name for entry in all_claims()}
    assert all(sum(tables is not None for tables in case[1:]) >= 2 for case in CASES)


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        pytest.param(case[0], tables, outcome, id=f"{case[0]}: {outcome}")
        for case in CASES
        for tables, outcome in zip(case[1:], ("reproduced", "partly", "not reproduced"), strict=True)
        if tables is not None
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(all_claims(), name), tables)
    assert verdict.outcome == outcome, verdict.because


@pytest.mark.parametrize(
    ("name", "value"),
    [("locater-improves-perplexity", "test_perplexity"), ("locater-raises-entropy", "valid_entropy")],
)
def test_two_paired_seeds_are_not_a_result(name, value):
    assert judge(claim_named(all_claims(), name), paired(value, [-1.0, -2.0])).outcome == "not run"


def test_a_verdict_with_its_own_sign_flips_when_baseline_and_regularised_swap():
    tables = paired("test_perplexity", [-2, -2.1, -1.9])
    swapped = {"paired": tables["paired"].assign(kappa=0.01 - tables["paired"]["kappa"])}
    entry = claim_named(all_claims(), "locater-improves-perplexity")
    assert (judge(entry, tables).outcome, judge(entry, swapped).outcome) == (
        "reproduced",
        "not reproduced",
    )


@pytest.mark.parametrize("entry", all_claims(), ids=lambda entry: entry.name)
def test_no_verdict_hangs_on_last_bits(entry):
    """Numbers moved by more than processors differ give the same verdict, with the same counts."""
    tables = load_numbers(entry.chapter)
    told = judge(entry, tables)
    for seed in range(2):
        noise = np.random.default_rng(seed)
        moved = {
            name: _moved(tables[name], noise, rule_for(entry.chapter, name).relative / 10) for name in entry.tables
        }
        again = judge(entry, moved)
        assert again.outcome == told.outcome
        assert text_difference(again.because, told.because) is None


def _moved(table, noise, size):
    """Measured columns times 1 ± size, a tenth of what `agreement` allows, and more than any two processors differ."""
    measured = [name for name in table.select_dtypes("float") if name not in SETTINGS]
    return table.assign(**{name: table[name] * (1 + size * noise.uniform(-1, 1, len(table))) for name in measured})


def test_only_words_of_the_abstract_are_quoted():
    quotes = [entry.quote for entry in all_claims() if entry.quote]
    assert quotes
    assert all(quote in ABSTRACT for quote in quotes)
    assert {entry.provenance for entry in all_claims() if entry.quote} == {"paper"}


def test_a_profile_other_than_the_committed_one_gives_no_verdict():
    shown = show_verdict(claim_named(all_claims(), "xavier-spectrum"), xavier(0, 1), "smoke")
    assert list(shown.verdicts.values()) == [None]
    assert "no verdict" in repr(shown)


def test_a_missing_table_and_an_unknown_claim_are_named():
    with pytest.raises(ArgumentError, match="tables lack xavier"):
        show_verdict(claim_named(all_claims(), "xavier-spectrum"), {}, "quick")
    with pytest.raises(ArgumentError, match=r"claim is 'nothing'; allowed: linearisation-first-order"):
        claim_named(all_claims(), "nothing")


def test_a_chapter_without_numbers_reads_not_run(tmp_path: Path):
    table = verdicts(tmp_path)
    assert set(table["outcome"]) == {"not run"}
    completed = table["because"].str.extract(r"`qkrepro figures (\w+)`")[0]
    written = {path.stem for path in (book_root() / "notebooks").glob("*.ipynb")}
    assert set(completed.dropna()) == written & set(table["chapter"])
    assert set(table.loc[completed.isna(), "because"]) <= {"its chapter is not written yet"}


def test_a_stored_verdict_that_no_longer_follows_is_named(tmp_path: Path):
    table = verdicts(tmp_path)
    table[["claim", "outcome", "because", "holds", "of"]].to_csv(tmp_path / STORED, index=False)
    assert changed_verdicts(table, tmp_path) == []
    edited = table.assign(outcome=["reproduced", *table["outcome"][1:]])
    edited[["claim", "outcome", "because", "holds", "of"]].to_csv(tmp_path / STORED, index=False)
    assert changed_verdicts(table, tmp_path) == [all_claims()[0].name]


def test_the_committed_verdicts_follow_from_the_committed_numbers():
    assert changed_verdicts(verdicts()) == []


def test_the_generated_pages_are_current(tmp_path: Path):
    written = write_pages(tmp_path)
    committed = book_root() / "book" / "generated"
    assert {path.name: path.read_text() for path in written} == {
        path.name: (committed / path.name).read_text() for path in written
    }


@pytest.mark.parametrize(
    ("epochs", "told"),
    [
        ([1.0, 1.0], "best after 1 pass over the text, in 0 of 6 runs at the last evaluation; 8,192 words"),
        ([7.0, 8.0], "best after 7 to 8 passes over the text, in 3 of 6 runs at the last evaluation; 8,192 words"),
    ],
)
def test_a_verdict_on_training_says_how_long_it_was_and_how_many_runs_might_go_on(epochs, told):
    tables = {"paired": paired("test_perplexity", [-1.0, -1.1, -0.9])["paired"].assign(best_epoch=epochs * 3)}
    entry = claim_named(all_claims(), "locater-improves-perplexity")
    assert told in judge(entry, tables).because
