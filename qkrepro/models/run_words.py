"""The model of a run of `qkrepro train` and a text in its own words, for `qkrepro spectrum RUN --text FILE`.

A run keeps its words in vocabulary.txt beside its weights.
"""

from typing import Any

import torch
from torch import Tensor

from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.models.towers import Tower
from qkrepro.models.transformer import LanguageModel, ModelConfig
from qkrepro.models.weight_files import Checkpoint, one_line, read_json

EOS, UNK = "<eos>", "<unk>"  # what stands for the end of a line, and for a word outside the vocabulary
VOCABULARY = "vocabulary.txt"  # beside the weights of a run: its words by number, one per line
SIZES = ("d_model", "d_ff", "layers", "heads", "norm")


def run_model(tower: Tower) -> LanguageModel:
    """Return the model of a run, without dropout, from its configuration and its weights.

    Raises CheckpointError when the weights are not those of such a model.
    """
    checkpoint, words = tower.checkpoint, run_corpus(tower.checkpoint)["words"]
    try:
        sizes = {name: checkpoint.config[name] for name in SIZES}
        sizes["temperature"] = checkpoint.config.get("temperature", 1.0)
        model = LanguageModel(ModelConfig(words, **sizes, dropout=0.0, max_length=checkpoint.config["length"]))
        tensors = {name: checkpoint.tensors[stored].read() for name, stored in tower.names.items()}
        model.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    except (KeyError, ArgumentError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.path}: not the weights of the run beside it ({one_line(error)})") from error
    return model.eval()


def run_corpus(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the record of a run says of its corpus: name, digest, words (their number)."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    about = read_json(folder / "run.json").get("corpus")
    if not isinstance(about, dict) or not {"name", "digest", "words"} <= about.keys():
        raise CheckpointError(f"{folder / 'run.json'}: no corpus with name, digest and words")
    return about


def run_words(checkpoint: Checkpoint) -> list[str]:
    """Return the words of a run's vocabulary, by number, from vocabulary.txt beside its weights.

    Raises CheckpointError when the file cannot be read, or holds another number of words than the run's record says.
    """
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    try:
        words = (folder / VOCABULARY).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder / VOCABULARY}: the words of the run cannot be read ({one_line(error)})"
        ) from error
    trained = run_corpus(checkpoint)["words"]
    if len(words) != trained:
        raise CheckpointError(f"{folder / VOCABULARY}: {len(words)} words; the run was trained on {trained}")
    return words


def text_windows(text: str, words: list[str], longest: int) -> list[Tensor]:
    """Return the windows of token numbers, (1, T) with 2 <= T <= longest, that a text becomes.

    Tokens are the words between white space and the ends of lines; words outside the vocabulary become `<unk>`.
    Raises ArgumentError for a word outside a vocabulary without `<unk>`, or a text of fewer than two words.
    """
    number = {word: index for index, word in enumerate(words)}
    tokens = [word for line in text.removesuffix("\n").split("\n") for word in (*line.split(), EOS)]
    tokens = [word for word in tokens if word != EOS or EOS in number]  # the synthetic corpus has no lines
    unknown = next((word for word in tokens if word not in number), None)
    if unknown is not None and UNK not in number:
        raise ArgumentError(f"text must hold words of the model's corpus, got {unknown!r:.40}")
    ids = torch.tensor([number.get(word, number.get(UNK, -1)) for word in tokens], dtype=torch.int64)
    if len(ids) < 2:
        raise ArgumentError("text must hold at least two tokens, which have an increment, got fewer")
    windows = [ids[None, start : start + longest] for start in range(0, len(ids), longest)]  # (1, T) each
    return [window for window in windows if window.shape[1] > 1]
