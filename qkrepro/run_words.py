"""The model of a run of `qkrepro train` and a text in its own words, for `qkrepro spectrum RUN --text FILE`.

Weights and record hold no words, only their number and the digest of the text that they come from. The words are had
from the encoded corpus, which stays in the cache where the run was trained, or from that text once more.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkrepro.checkpoint_files import Checkpoint, one_line, read_json
from qkrepro.corpus import EOS, UNK, Corpus, cached_words, load_corpus, load_folder
from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.towers import Tower
from qkrepro.transformer import LanguageModel, ModelConfig

SIZES = ("d_model", "d_ff", "layers", "heads", "norm")


def run_model(tower: Tower) -> LanguageModel:
    """The model of a run, without dropout, from its configuration and its weights.

    Raises CheckpointError when the weights are not those of such a model.
    """
    checkpoint, words = tower.checkpoint, run_corpus(tower.checkpoint)["words"]
    try:
        sizes = {name: checkpoint.config[name] for name in SIZES}
        model = LanguageModel(ModelConfig(words, **sizes, dropout=0.0, max_length=checkpoint.config["length"]))
        model.load_state_dict({name: checkpoint.read(stored) for name, stored in tower.names.items()})
    except (KeyError, ArgumentError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.path}: not the weights of the run beside it ({one_line(error)})") from error
    return model.eval()


def run_corpus(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the record of a run says of its corpus: name, digest, words (their number)."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    about = read_json(folder / "run.json").get("corpus")
    if not isinstance(about, dict) or not {"name", "digest", "words"} <= about.keys():
        raise CheckpointError(f"{folder / 'run.json'}: no corpus with name, digest and words")
    return about


def run_words(checkpoint: Checkpoint, data: Path | None) -> list[str]:
    """The words of a run's vocabulary, by number.

    data: the folder of text that the run was trained on; None looks into the cache and, for WikiText-2, where
    $QKREPRO_DATA points. Raises ArgumentError when they cannot be had, or come from another text or in another number,
    CorpusError for a folder that holds no corpus.
    """
    about, vocabulary = run_corpus(checkpoint), checkpoint.config.get("vocabulary")
    words = cached_words(about["digest"], vocabulary) if data is None else None
    if words is None:
        corpus = _corpus(str(about["name"]), vocabulary, data)
        if corpus.digest != about["digest"]:
            raise ArgumentError(
                f"the run was trained on {about['name']} of digest {about['digest']:.16}; the text here has "
                f"{corpus.digest:.16}; allowed: --data with the folder of the same text"
            )
        words = corpus.words
    if len(words) != about["words"]:
        raise ArgumentError(f"the run was trained on {about['words']} words; found {len(words)} in its corpus")
    return words


def _corpus(name: str, vocabulary: int | None, data: Path | None) -> Corpus:
    """The corpus of a record's name, encoded again."""
    plain = name.partition(" (reduced vocabulary")[0]
    if plain.startswith("synthetic zipf "):  # its name holds its numbers
        return load_corpus("synthetic", None, vocabulary)
    if plain == "wikitext-2":
        return load_corpus(plain, data, vocabulary)
    if data is None:
        raise ArgumentError(
            f"text needs the words of {plain!r}, which weights do not hold; allowed: --data, its folder"
        )
    return load_folder(data, plain, vocabulary)


def text_windows(text: str, words: list[str], longest: int) -> list[Tensor]:
    """Windows of token numbers (1, T), 2 <= T <= longest: words between white space, a line's end, unknown words.

    Raises ArgumentError for a word outside a vocabulary without `<unk>`, or a text of fewer than two words.
    """
    number = {word: index for index, word in enumerate(words)}
    found = [word for line in text.removesuffix("\n").split("\n") for word in (*line.split(), EOS)]
    found = [word for word in found if word != EOS or EOS in number]  # the synthetic corpus has no lines
    unknown = next((word for word in found if word not in number), None)
    if unknown is not None and UNK not in number:
        raise ArgumentError(f"text holds {unknown!r:.40}, which the model does not know; allowed: words of its corpus")
    ids = torch.tensor([number.get(word, number.get(UNK, -1)) for word in found], dtype=torch.int64)
    if len(ids) < 2:
        raise ArgumentError("text holds fewer than two tokens; allowed: a text with increments")
    windows = [ids[None, start : start + longest] for start in range(0, len(ids), longest)]  # (1, T) each
    return [window for window in windows if window.shape[1] > 1]
