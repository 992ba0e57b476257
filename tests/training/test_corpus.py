"""Corpora: encoding against counts by hand, damage and absence as clear errors, a cache that changes nothing."""

import hashlib
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkrepro.errors import ArgumentError, CorpusError
from qkrepro.models.run_words import UNK
from qkrepro.training import corpus as corpus_module
from qkrepro.training.corpus import (
    cache_folder,
    conditional_entropy,
    find_wikitext_2,
    hub_text,
    load_corpus,
    load_folder,
    synthetic_corpus,
    zipf_probabilities,
)

TRAIN = "the cat sat\n\nthe cat ran\nthe dog\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QKREPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QKREPRO_DATA", raising=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for split, text in (("train", TRAIN), ("valid", "the bird sat\n"), ("test", "the cat\n")):
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    return folder


def words_of(corpus, stream):
    return [corpus.words[number] for number in stream]


def test_every_line_ends_with_eos_and_words_are_kept_in_order(folder):
    corpus = load_corpus(str(folder))
    expected = ["the", "cat", "sat", "<eos>", "<eos>", "the", "cat", "ran", "<eos>", "the", "dog", "<eos>"]
    assert words_of(corpus, corpus.train) == expected


def test_vocabulary_is_by_frequency_then_alphabet_with_unk_for_words_outside_training(folder):
    corpus = load_corpus(str(folder))
    assert corpus.words == ["<eos>", "the", "cat", "dog", "ran", "sat", UNK]
    assert words_of(corpus, corpus.valid) == ["the", UNK, "sat", "<eos>"]


def test_reduced_vocabulary_keeps_the_most_frequent_and_says_so(folder):
    corpus = load_corpus(str(folder), vocabulary=4)
    assert corpus.words == ["<eos>", "the", "cat", UNK]
    assert corpus.reduced
    assert "reduced vocabulary" in corpus.name
    assert words_of(corpus, corpus.test) == ["the", "cat", "<eos>"]


def test_vocabulary_larger_than_the_text_changes_nothing(folder):
    whole, asked = load_corpus(str(folder)), load_corpus(str(folder), vocabulary=100)
    assert (asked.words, asked.name, asked.reduced) == (whole.words, whole.name, False)


@given(st.lists(st.lists(st.text("abc", min_size=1, max_size=2), max_size=5), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_decoding_gives_back_any_training_text(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("text")
    text = "\n".join(" ".join(line) for line in [*lines, ["a"]])
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus(str(folder))
    decoded = " ".join(words_of(corpus, corpus.train)).replace("<eos>", "\n").split("\n")[:-1]
    assert [line.split() for line in decoded] == [line.split() for line in text.split("\n")]


def test_cached_corpus_equals_the_encoded_one(folder):
    first = load_corpus(str(folder))
    assert list(cache_folder().glob("*.safetensors"))
    second = load_corpus(str(folder))
    assert second.words == first.words
    assert torch.equal(second.train, first.train)
    assert second.train.dtype == first.train.dtype == torch.int64


def test_damaged_cache_is_encoded_again(folder):
    first = load_corpus(str(folder))
    (cached,) = cache_folder().glob("*.safetensors")
    raw = bytearray(cached.read_bytes())
    raw[-1] ^= 1
    cached.write_bytes(raw)
    assert torch.equal(load_corpus(str(folder)).test, first.test)


def test_changed_text_is_not_taken_from_the_cache(folder):
    before = load_corpus(str(folder))
    (folder / "test.txt").write_text("dog dog\n")
    after = load_corpus(str(folder))
    assert words_of(after, after.test) == ["dog", "dog", "<eos>"]
    assert after.digest != before.digest


def test_unwritable_cache_costs_nothing_but_time(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("QKREPRO_CACHE", str(tmp_path / "file"))
    assert load_corpus(str(folder)).vocabulary == 7


def test_digest_that_differs_names_the_file_and_both_digests(folder):
    expected = {"train": "0" * 64}
    found = hashlib.sha256(TRAIN.encode()).hexdigest()
    with pytest.raises(CorpusError, match=rf"train\.txt is damaged.*{'0' * 64}.*{found}"):
        load_folder(folder, "text", digests=expected)


def test_text_that_is_not_utf_8_names_the_byte(folder):
    (folder / "valid.txt").write_bytes(b"good \xff\n")
    with pytest.raises(CorpusError, match=r"valid\.txt is not UTF-8 text: byte 5 is 0xff"):
        load_corpus(str(folder))


@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_split_without_words_is_an_error(folder, text):
    (folder / "test.txt").write_text(text)
    with pytest.raises(CorpusError, match="the test split is empty"):
        load_corpus(str(folder))


def test_missing_split_names_the_allowed_files(folder):
    (folder / "valid.txt").unlink()
    with pytest.raises(CorpusError, match=r"must have one of valid\.txt, .* for the valid split, got 0"):
        load_corpus(str(folder))


def test_two_files_for_a_split_are_refused(folder):
    (folder / "wiki.train.tokens").write_text("a")
    with pytest.raises(CorpusError, match="for the train split, got 2"):
        load_corpus(str(folder))


def test_unknown_name_lists_what_is_allowed():
    with pytest.raises(
        CorpusError, match="corpus must be synthetic, wikitext-2, or an existing folder of text, got 'wikitext'"
    ):
        load_corpus("wikitext")


def test_vocabulary_below_three_is_refused(folder):
    with pytest.raises(ArgumentError, match=r"vocabulary must .*, got 2"):
        load_corpus(str(folder), vocabulary=2)


def test_wikitext_2_is_found_in_data_in_its_subfolder_and_by_the_environment(folder, monkeypatch):
    assert find_wikitext_2(folder) == folder
    (folder.parent / "all").mkdir()
    folder.rename(folder.parent / "all" / "wikitext-2")
    monkeypatch.setenv("QKREPRO_DATA", str(folder.parent / "all"))
    assert find_wikitext_2() == folder.parent / "all" / "wikitext-2"


def test_wikitext_2_with_another_digest_is_refused(folder):
    with pytest.raises(CorpusError, match="is damaged"):
        load_corpus("wikitext-2", folder)


def test_fetch_without_the_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(CorpusError, match=r"qkrepro\[hub\]"):
        load_corpus("wikitext-2")


def test_fetch_that_fails_says_where_else_the_files_can_come_from(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(CorpusError, match=r"could not be fetched.*no network.*--data DIR"):
        load_corpus("wikitext-2")


def test_hub_rows_give_back_the_original_lines(monkeypatch, tmp_path):
    hub, parquet = pytest.importorskip("huggingface_hub"), pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    rows = ["", " = Title = \n", "", " Some text . \n"]
    original = b" \n = Title = \n \n Some text . \n"
    assert hub_text(rows).encode() == original
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "rows.parquet")
    monkeypatch.setattr(hub, "hf_hub_download", lambda *args, **kwargs: str(tmp_path / "rows.parquet"))
    digest = hashlib.sha256(original).hexdigest()
    monkeypatch.setattr(corpus_module, "WIKITEXT_2_DIGESTS", dict.fromkeys(("train", "valid", "test"), digest))
    assert (find_wikitext_2() / "valid.txt").read_bytes() == original


def test_synthetic_words_follow_zipf_in_every_split():
    corpus = synthetic_corpus(vocabulary=20, tokens=200_000)
    shares = torch.bincount(corpus.train, minlength=20) / len(corpus.train)
    # repeated words make the count vary by (1 + repeat)/(1 - repeat) = 4 times a binomial: four standard errors
    error = (4 * zipf_probabilities(20) / len(corpus.train)).sqrt()
    assert bool(((shares - zipf_probabilities(20)).abs() < 4 * error).all())


def test_synthetic_words_repeat_at_the_lag_as_often_as_said():
    corpus = synthetic_corpus(vocabulary=50, tokens=100_000, repeat=0.6, lag=4)
    same = float((corpus.train[4:] == corpus.train[:-4]).double().mean())
    by_chance = float(zipf_probabilities(50).square().sum())
    assert same == pytest.approx(0.6 + 0.4 * by_chance, abs=4 * math.sqrt(0.25 * 4 / 100_000))


def test_conditional_entropy_is_the_mean_surprise_of_the_generator_under_its_own_law():
    corpus = synthetic_corpus(vocabulary=30, tokens=200_000, repeat=0.5, lag=3)
    pi, stream = zipf_probabilities(30), corpus.train
    probability = 0.5 * pi[stream[3:]] + 0.5 * (stream[3:] == stream[:-3]).double()
    surprise = -probability.log()
    error = float(surprise.std()) / math.sqrt(len(surprise))
    assert corpus.entropy == pytest.approx(float(surprise.mean()), abs=4 * error)


def test_conditional_entropy_without_repeats_is_that_of_zipf():
    pi = zipf_probabilities(100)
    assert conditional_entropy(100, 0.0) == pytest.approx(float(-(pi * pi.log()).sum()), rel=1e-12)


def test_same_seed_gives_the_same_corpus_and_another_one_does_not():
    assert torch.equal(synthetic_corpus(seed=1).train, synthetic_corpus(seed=1).train)
    assert not torch.equal(synthetic_corpus(seed=1).train, synthetic_corpus(seed=2).train)


@pytest.mark.parametrize("bad", [{"repeat": 1.0}, {"repeat": -0.1}, {"lag": 0}, {"tokens": 20}, {"vocabulary": 1}])
def test_bad_sizes_are_refused(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        synthetic_corpus(**bad)


def test_folder_words_are_counted_as_python_counts_them(folder):
    corpus = load_corpus(str(folder))
    counts = Counter(TRAIN.split())
    assert {word: words_of(corpus, corpus.train).count(word) for word in counts} == counts
