"""A folder of text of one's own: the example that stands in for it, its runs, and the cost of a long one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qkrepro.chapters.bring_your_own_corpus import recorded_rates, runs_on_folder, text_table, write_example
from qkrepro.errors import CorpusError, RunError
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.corpus import load_corpus
from qkrepro.training.tables import live_runs

TINY = RunConfiguration(
    d_model=16, d_ff=16, length=32, batch=8, epochs=0.02, warmup=10, evaluate_every=10, measured_sequences=4
)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    threads = torch.get_num_threads()
    monkeypatch.setenv("QKREPRO_CACHE", str(tmp_path / "cache"))
    yield
    torch.set_num_threads(threads)


def test_example_is_text_that_repeats_the_word_four_back_more_often_than_chance(tmp_path):
    folder = write_example(tmp_path / "text", tokens=4000)
    words = (folder / "train.txt").read_text().split()
    again = sum(word == earlier for word, earlier in zip(words[4:], words, strict=False)) / (len(words) - 4)
    assert len(words) == 4000
    assert again > 0.6
    assert load_corpus(str(folder)).vocabulary == 31  # its words and <eos>


def test_runs_are_those_of_the_folder_paired_by_seed(tmp_path):
    folder = write_example(tmp_path / "text", tokens=20_000)
    found = runs_on_folder(folder, TINY, [0, 1], [0.0, 0.01])
    expected = live_runs([replace(TINY, corpus=str(folder), seed=1, kappa=0.01)])
    assert found.runs.summary[["seed", "kappa"]].to_numpy().tolist() == [[0, 0], [0, 0.01], [1, 0], [1, 0.01]]
    assert found.runs.summary["run"].iloc[-1] == expected.summary["run"].iloc[0]
    assert found.runs.curves.query("update == 0").groupby("seed")["valid_loss"].nunique().tolist() == [1, 1]


def test_without_a_folder_the_example_is_trained_and_runs_are_the_same_twice():
    first, second = (runs_on_folder("", TINY, [0], [0.0]) for _ in range(2))
    assert first.runs.summary["corpus"].tolist() == ["example"]
    assert first.runs.summary.equals(second.runs.summary)
    assert first.text["tokens"].iloc[0] == 60_000 + 1500  # an <eos> every forty words


def test_text_in_numbers_counts_the_words_that_the_vocabulary_does_not_hold(tmp_path):
    for split, text in {"train": "a a b c", "valid": "a d", "test": "a b"}.items():
        (tmp_path / f"{split}.txt").write_text(text + "\n")
    table = text_table(load_corpus(str(tmp_path), vocabulary=4)).set_index("split")
    assert table["tokens"].to_dict() == {"train": 5, "valid": 3, "test": 3}
    assert table.loc["valid", "unknown"] == pytest.approx(1 / 3)


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(CorpusError, match="an existing folder of text"):
        runs_on_folder("no such folder", TINY, [0], [0.0])


def timing(folder: Path, rate: float, words: int) -> None:
    folder.mkdir(parents=True)
    (folder / "timing.json").write_text(json.dumps({"tokens_per_second": rate}))
    (folder / "run.json").write_text(json.dumps({"corpus": {"words": words}}))


def test_minutes_a_pass_follow_from_the_median_rate_of_the_recorded_runs(tmp_path):
    for number, rate in enumerate((100.0, 200.0, 1000.0)):
        timing(tmp_path / "some" / f"run{number}", rate, 50)
    row = recorded_rates(tmp_path, 24_000, ["some"]).iloc[0]
    assert row.tolist() == ["some", 50, 200.0, 2.0]
    assert recorded_rates(tmp_path, 1, ["none"]).empty
    (tmp_path / "some" / "run0" / "timing.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        recorded_rates(tmp_path, 1, ["some"])
