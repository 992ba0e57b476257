"""`qkrepro spectrum --text` for runs of `qkrepro train`, in the words of their corpus, for CLIP, and not for images."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_models import make, save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qkrepro.chapters.bring_your_own_corpus import write_example
from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.models.run_words import text_windows
from qkrepro.models.spectrum_report import qk_table
from qkrepro.models.token_covariance import increment_covariances
from qkrepro.models.transformer import LanguageModel, ModelConfig
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.corpus import load_corpus
from qkrepro.training.loop import train

SIZES = {"d_model": 16, "d_ff": 16, "layers": 2, "heads": 2, "norm": "pre"}
BRIEF = {
    "length": 12,
    "batch": 8,
    "epochs": 0.02,
    "warmup": 5,
    "evaluate_every": 5,
    "measured_sequences": 4,
    "valid_tokens": 96,
}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setenv("QKREPRO_CACHE", str(tmp_path / "cache"))
    yield
    torch.set_num_threads(threads)


def second_moment(windows: list[torch.Tensor]) -> torch.Tensor:
    """Mean of (x_{t+1} − x_t)(x_{t+1} − x_t)ᵀ, windows (T, d) each."""
    steps = torch.cat([window[1:] - window[:-1] for window in windows]).double()
    return torch.einsum("ti,tj->ij", steps, steps) / len(steps)


def a_run(tmp_path: Path, corpus: str, vocabulary: int | None = None, temperature: float = 1.0) -> Path:
    run = RunConfiguration(corpus=corpus, vocabulary=vocabulary, temperature=temperature, **SIZES, **BRIEF)
    return train(run, tmp_path, progress=False)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_a_run_reads_a_text_in_the_words_of_its_corpus(tmp_path: Path, temperature: float) -> None:
    folder = write_example(tmp_path / "text", tokens=4000)
    run = a_run(tmp_path / "runs", str(folder), vocabulary=20, temperature=temperature)
    covariances = increment_covariances(run, folder / "valid.txt")

    corpus = load_corpus(str(folder), vocabulary=20)
    model = LanguageModel(ModelConfig(20, **SIZES, max_length=12, temperature=temperature))
    model.load_state_dict(safetensors.torch.load_file(run / "best.safetensors"))
    with torch.no_grad():
        traces = [model.eval().trace(ids[None]) for ids in corpus.valid.split(12) if len(ids) > 1]
    for layer in range(2):
        expected = second_moment([trace[layer].inputs[0] for trace in traces])
        torch.testing.assert_close(covariances["", layer], expected, rtol=1e-4, atol=1e-6)
    table = qk_table(run, draws=5, text=folder / "valid.txt")
    assert table["localization"].between(0, 1).all()
    assert table["temperature"].tolist() == pytest.approx([temperature * 8**0.5] * 4)
    assert not table["localization"].equals(qk_table(run, draws=5)["localization"])


def test_a_run_keeps_its_words_and_they_are_held_against_its_record(tmp_path: Path) -> None:
    folder = write_example(tmp_path / "text", tokens=4000)
    run, text = a_run(tmp_path / "runs", str(folder)), folder / "valid.txt"
    vocabulary = run / "vocabulary.txt"
    assert vocabulary.read_text(encoding="utf-8").splitlines() == load_corpus(str(folder)).words
    covariances, again = increment_covariances(run, text), increment_covariances(run / "best.safetensors", text)
    assert covariances
    assert all(torch.equal(covariances[key], again[key]) for key in covariances)
    with vocabulary.open("a", encoding="utf-8") as file:
        file.write("more\n")
    with pytest.raises(CheckpointError, match=r"vocabulary\.txt: \d+ words; the run was trained on \d+"):
        increment_covariances(run, text)
    vocabulary.unlink()
    with pytest.raises(CheckpointError, match=r"vocabulary\.txt: the words of the run cannot be read"):
        increment_covariances(run, text)


def test_a_run_on_the_synthetic_corpus_needs_no_data_and_names_a_word_that_it_does_not_know(tmp_path: Path) -> None:
    run, text = a_run(tmp_path / "runs", "synthetic"), tmp_path / "text.txt"
    words = load_corpus("synthetic").words
    text.write_text(" ".join(words[number % 7] for number in range(40)))
    assert set(increment_covariances(run, text)) == {("", 0), ("", 1)}
    text.write_text(f"{words[0]} nobody")
    with pytest.raises(ArgumentError, match=r"text must hold words of .*, got 'nobody'"):
        increment_covariances(run, text)


def test_lines_end_and_unknown_words_become_one_word() -> None:
    windows = text_windows("a b\n\nc a\n", ["<eos>", "a", "b", "<unk>"], longest=4)
    assert [window.tolist() for window in windows] == [[[1, 2, 0, 0]], [[3, 1, 0]]]
    with pytest.raises(ArgumentError, match="at least two tokens"):
        text_windows("a", ["a"], longest=4)


def test_the_text_tower_of_clip_reads_a_text_and_the_vision_tower_is_left_out(tmp_path: Path) -> None:
    network = make("clip")
    folder = save(network, tmp_path)
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(48)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    numbers = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]
    (tmp_path / "text.txt").write_text(" ".join(f"w{number}" for number in numbers))
    covariances = increment_covariances(folder, tmp_path / "text.txt")
    assert set(covariances) == {("text", layer) for layer in range(3)}
    with torch.no_grad():
        text = network.text_model
        hidden = text(input_ids=torch.tensor([numbers]), output_hidden_states=True).hidden_states
        for layer in range(3):
            expected = second_moment([text.encoder.layers[layer].layer_norm1(hidden[layer])[0]])
            torch.testing.assert_close(covariances["text", layer], expected, rtol=1e-4, atol=1e-6)
    assert qk_table(folder, draws=3, text=tmp_path / "text.txt").groupby("part").size().to_dict() == {"text": 12}


@pytest.mark.parametrize(("name", "kind"), [("vit", "vit"), ("clip-vision", "clip_vision_model")])
def test_models_of_images_say_that_they_read_no_text(name: str, kind: str, tmp_path: Path) -> None:
    folder = save(make(name), tmp_path)
    (tmp_path / "text.txt").write_text("some words")
    with pytest.raises(ArgumentError, match=f"'{kind}', which reads images"):
        increment_covariances(folder, tmp_path / "text.txt")
