"""The configuration of a training run: everything its numbers depend on, and with it the run's identity."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import yaml

from qkrepro.errors import ArgumentError, check_choice, check_integer, check_number
from qkrepro.training.corpus import Corpus
from qkrepro.training.optimizer import SCHEDULES
from qkrepro.training.peers import PEERS, check_strength
from qkrepro.training.records import ADDED, run_identity
from qkrepro.training.vocabulary_loss import PRECISIONS

PENALISED = ("weights", "tokens")


@dataclass(frozen=True)
class RunConfiguration:
    """One run of `qkrepro train`. The defaults are the one-layer model of the book on the synthetic corpus.

    `qkrepro train --corpus wikitext-2 --data DIR --kappa 0.01` trains on WikiText-2, 2.09 million tokens an epoch.
    """

    corpus: str = "synthetic"  # synthetic, wikitext-2 or a folder of text
    vocabulary: int | None = None  # keep this many most frequent words ("reduced vocabulary"); None keeps all
    seed: int = 0  # of the weights, the order of the batches and dropout: equal seeds make paired runs
    layers: int = 1
    heads: int = 1
    d_model: int = 128
    d_ff: int = 128
    norm: str = "post"  # post or pre
    dropout: float = 0.1
    temperature: float = 1.0  # of the softmax: the logits are divided by temperature · √d_head
    length: int = 256  # tokens per sequence
    batch: int = 16  # sequences per update
    epochs: float = 5.0  # at most
    learning_rate: float = 1e-3  # peak of the schedule
    warmup: int = 200  # updates
    schedule: str = "inverse-square-root"  # or linear: to zero after the last update of `epochs`
    weight_decay: float = 0.01
    kappa: float = 0.0  # weight of LocAteR; 0 is the baseline
    target_trace: float = 1.0
    scale: str = "frobenius"
    mean: str = "penalty"
    penalised: str = "weights"  # W_QK itself, or tokens: Σ^½ W_QK Σ^½ with Σ of the increments of the layer's tokens
    peer: str = "none"  # another method beside or instead of LocAteR, one of qkrepro.training.peers.PEERS
    peer_strength: float = 0.0  # qk-clip: largest logit; qk-weight-decay: decay; 0 for the others
    start_gain: float = 1.0  # factor on w_q and w_k at the start
    start_mean: float | None = None  # start W_QK with this eigenvalue mean ...
    start_deviation: float | None = None  # ... and this standard deviation; None keeps Xavier's
    evaluate_every: int = 200  # updates
    patience: int = 0  # stop after so many evaluations without a better validation loss; 0 never stops early
    valid_tokens: int | None = 32768  # validation tokens an evaluation looks at, about; None takes all
    measured_sequences: int = 16  # validation sequences on which attention is measured
    precision: str = "float32"  # of the model; bf16: of the products over the vocabulary alone
    device: str = "cpu"
    threads: int = 1  # of the processor; part of the identity, since the order of sums depends on it

    def __post_init__(self) -> None:
        """Raise ArgumentError for a value outside what is allowed; the model and LocAteR check their own."""
        for name in ("layers", "heads", "d_model", "d_ff", "length", "batch", "warmup", "evaluate_every", "threads"):
            check_integer(name, getattr(self, name), at_least=2 if name == "length" else 1)
        for name in ("seed", "patience"):
            check_integer(name, getattr(self, name), at_least=0)
        check_integer("measured_sequences", self.measured_sequences, at_least=2)
        for name in ("epochs", "learning_rate", "start_gain", "temperature"):
            check_number(name, getattr(self, name), above=0)
        for name in ("weight_decay", "kappa"):
            check_number(name, getattr(self, name), at_least=0)
        if self.valid_tokens is not None:
            check_integer("valid_tokens", self.valid_tokens, at_least=1)
        if (self.start_mean is None) != (self.start_deviation is None):
            raise ArgumentError(
                "start_mean and start_deviation must both be given or neither, "
                f"got {self.start_mean!r} and {self.start_deviation!r}"
            )
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("penalised", self.penalised, PENALISED)
        check_choice("peer", self.peer, PEERS)
        check_strength(self.peer, self.peer_strength)
        if self.peer == "qk-clip" and self.temperature != 1:
            raise ArgumentError(f"temperature must be 1 with peer 'qk-clip', got {self.temperature!r}")
        check_choice("device", self.device, ("cpu", "cuda"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ArgumentError("device must be 'cpu', since PyTorch finds no CUDA device, got 'cuda'")


def configuration_from(values: Mapping[str, Any]) -> RunConfiguration:
    """Return the configuration with these values. Raises ArgumentError for a name or a value that is not allowed."""
    known = [field.name for field in fields(RunConfiguration)]
    for name in values:
        check_choice("configuration entry", name, known)
    return RunConfiguration(**values)


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Return the values of entries written NAME=VALUE, VALUE read as YAML. Raises ArgumentError for another form."""
    pairs = [setting.partition("=") for setting in settings]
    for setting, (name, equals, _) in zip(settings, pairs, strict=True):
        if not (name and equals):
            raise ArgumentError(f"setting must be NAME=VALUE, got {setting!r}")
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def settings(configuration: RunConfiguration) -> dict[str, Any]:
    """Return the entries that a record states, JSON values only, without the corpus.

    An entry that was added after the first records is left out where it holds what those runs had (`records.ADDED`),
    so that an old configuration keeps its identity.
    """
    types = {field.name: str(field.type) for field in fields(configuration)}
    values = {name: value for name, value in asdict(configuration).items() if name != "corpus"}
    values |= {name: float(value) for name, value in values.items() if value is not None and "float" in types[name]}
    return {name: value for name, value in values.items() if name not in ADDED or value != ADDED[name]}


def described(configuration: RunConfiguration, corpus: Corpus) -> dict[str, Any]:
    """Return what a record says of a run, JSON values only: `identity`, `configuration`, `corpus`.

    The corpus stands there by name and digest, never by the path it was read from.
    """
    stated = settings(configuration)
    about = {
        "name": corpus.name,
        "digest": corpus.digest,
        "words": corpus.vocabulary,
        "reduced_vocabulary": corpus.reduced,
        "entropy": corpus.entropy,
    }
    return {"identity": run_identity(stated | {"corpus": about}), "configuration": stated, "corpus": about}
