"""Hard attention: each query reads one token. Training through it, what it loses, and what it saves.

A sequence holds pairs of a key symbol and a value; a query names a symbol. Either one token answers (recall), or
several tokens of that symbol do, each right only now and then (vote). Source: book, "Hard retrieval"; the question is
that of arXiv 2009.14658, the tasks are ours.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import interval_ends
from qkrepro.evidence.verdicts import above, settings_verdict
from qkrepro.theory.attention import attention_entropy
from qkrepro.theory.statistics import intervals, t_interval
from qkrepro.training.side_by_side import Heads, matrices, minimise, through

READS: tuple[str, ...] = ()
SOURCE = "2009.14658"
SPECTRUM_SAYS = "Retrieval wants a concentrated spectrum of positive mean, and soft and hard attention both learn it."
LITTLE = 0.02  # accuracy that may be lost for it to count as little
SOFT, HARD, BLOCKED = "soft", "hard, straight-through", "hard, own gradient"


@dataclass(frozen=True)
class Task:
    """What is asked: of `length` tokens, `copies` carry the symbol of the query, each with the right value by `truth`.

    A value is one of `values`; a token that does not tell the truth has any of them. Symbols come with Gaussian noise.
    """

    length: int
    copies: int = 1
    truth: float = 1.0
    dim: int = 16
    values: int = 8
    symbols: int = 64
    noise: float = 0.3


class Batch(NamedTuple):
    """Sequences of equal length with a query each."""

    queries: Tensor  # (runs, batch, 1, d)
    keys: Tensor  # (runs, batch, T, d)
    values: Tensor  # (runs, batch, T, C), one-hot
    answers: Tensor  # (runs, batch)


def draw_batch(task: Task, embedding: Tensor, batch: int, generator: Generator) -> Batch:
    """Return `batch` sequences a run of a task; embedding: (runs, symbols, d), one vector a symbol.

    generator: of all that is drawn. The copies stand first; attention does not see places.
    """
    runs = len(embedding)
    order = torch.rand(runs, batch, task.symbols, generator=generator).argsort(-1)  # a permutation of the symbols
    asked = order[..., :1]
    others = order[..., 1 : 1 + task.length - task.copies]
    names = torch.cat([asked.expand(-1, -1, task.copies), others], dim=-1)  # (runs, batch, T)
    run = torch.arange(runs)[:, None, None]

    def noisy(symbols: Tensor) -> Tensor:
        clean = embedding[run, symbols]
        return clean + task.noise * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)

    values = torch.randint(task.values, names.shape, generator=generator)
    answers = torch.randint(task.values, (runs, batch), generator=generator)
    true = torch.rand(runs, batch, task.copies, generator=generator) < task.truth
    values[..., : task.copies] = torch.where(true, answers[..., None], values[..., : task.copies])
    return Batch(noisy(asked), noisy(names), nn.functional.one_hot(values, task.values).to(embedding), answers)


def attention_of(logits: Tensor, kind: str) -> Tensor:
    """Return attention weights (..., T): softmax, or one-hot at the maximum with the softmax's gradient or none."""
    soft = torch.softmax(logits, dim=-1)
    if kind == SOFT:
        return soft
    hard = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(soft)
    return hard if kind == BLOCKED else hard + soft - soft.detach()


def train_arms(
    tasks: dict[str, Task], kinds: Sequence[str], *, runs: int, batch: int, tested: int, steps: int, rate: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every kind of attention on every task from the same weights and data, and test it on new sequences.

    tasks: by name. kinds: of attention. runs: trainings of each. batch, tested: sequences a run, at each step and in
    the test. steps, rate: of Adam. Returns the accuracies (task, trained, decoded, run, accuracy, entropy in nats),
    where soft attention is also decoded hard, and the spectra (task, trained and the columns of `Heads.spectrum`).
    """
    sizes = {"runs": runs, "batch": batch, "tested": tested, "steps": steps}
    parts = [_train_kinds(name, task, kinds, rate=rate, **sizes) for name, task in tasks.items()]
    accuracies, spectra = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    return accuracies, spectra


def _train_kinds(
    name: str, task: Task, kinds: Sequence[str], *, runs: int, batch: int, tested: int, steps: int, rate: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return accuracies and spectra of one task, under its name, on batches that are drawn once for all kinds.

    The other arguments are those of `train_arms`: runs, batch, tested, steps and rate.
    """
    generator = torch.Generator().manual_seed(0)
    embedding = matrices(runs, task.symbols, task.dim, generator).detach() * task.dim**0.5
    start = Heads(runs, task.dim, task.dim, generator), matrices(runs, task.values, task.values, generator)
    arms = {kind: deepcopy(start) for kind in kinds}

    def guess(kind: str, way: str, drawn: Batch) -> tuple[Tensor, Tensor]:
        heads, read = arms[kind]
        q, k = through(drawn.queries, heads.w_q), through(drawn.keys, heads.w_k)
        attention = attention_of((q @ k.mT)[:, :, 0] / task.dim**0.5, way)  # (runs, batch, T)
        return attention, (attention[..., None, :] @ drawn.values)[..., 0, :] @ read.mT

    def loss() -> Tensor:
        drawn = draw_batch(task, embedding, batch, generator)
        guesses = [guess(kind, kind, drawn)[1].flatten(0, 1) for kind in arms]
        losses = [nn.functional.cross_entropy(logits, drawn.answers.flatten()) * runs for logits in guesses]
        return torch.stack(losses).sum()

    weights = [weight for heads, read in arms.values() for weight in (*heads.parameters(), read)]
    minimise(weights, loss, steps=steps, rate=rate)
    drawn = draw_batch(task, embedding, tested, generator.manual_seed(1))
    tables = []
    for trained, way in ((kind, way) for kind in arms for way in ((SOFT, HARD) if kind == SOFT else (HARD,))):
        with torch.no_grad():
            attention, logits = guess(trained, way, drawn)
        measured = {"accuracy": (logits.argmax(-1) == drawn.answers).double().mean(-1)}
        measured |= {"entropy": attention_entropy(attention).mean(-1)}
        arm = {"task": name, "trained": trained, "decoded": way.split(",")[0], "run": range(runs)}
        tables.append(pd.DataFrame(arm | measured))
    spectra = [heads.spectrum().assign(task=name, trained=kind) for kind, (heads, _) in arms.items()]
    return pd.concat(tables, ignore_index=True), pd.concat(spectra, ignore_index=True)


def decoding_operations(lengths: Sequence[int], dim: int) -> pd.DataFrame:
    """Return the floating-point operations in matrix products of one query's attention: length, soft, hard, ratio."""
    rows = []
    for length in lengths:
        query, keys = torch.zeros(1, dim), torch.zeros(length, dim)
        counts = {}
        for kind in ("soft", "hard"):
            with FlopCounterMode(display=False) as counter:
                logits = query @ keys.mT
                _ = torch.softmax(logits, -1) @ keys if kind == "soft" else keys[logits.argmax(-1)]
            counts[kind] = counter.get_total_flops()
        rows.append({"length": length, **counts, "ratio": counts["soft"] / counts["hard"]})
    return pd.DataFrame(rows)


def hard_loses_little(tables: Tables, little: float = LITTLE) -> Verdict:
    """Judge hard minus soft accuracy by task, paired by run: `accuracy` has task, trained, decoded, run, accuracy."""
    return _differences(tables["accuracy"], HARD, SOFT, -little)


def gradient_is_what_counts(tables: Tables) -> Verdict:
    """Judge straight-through minus blocked gradient by task, paired by run; table as above."""
    return _differences(tables["accuracy"], HARD, BLOCKED, 0.0)


def _differences(accuracy: pd.DataFrame, better: str, worse: str, bar: float) -> Verdict:
    trained_so = accuracy[(accuracy["trained"] != SOFT) | (accuracy["decoded"] == SOFT)]
    cases = {}
    for task, line in trained_so.groupby("task", sort=False):
        wide = line.pivot(index="run", columns="trained", values="accuracy")
        cases[str(task)] = above(t_interval(wide[better] - wide[worse]), bar)
    return settings_verdict(cases)


def plot_accuracy(accuracy: pd.DataFrame, chance: float, ax: Axes) -> None:
    """Draw the accuracy by task with intervals over runs, a bar for each way to train and decode."""
    named = accuracy.assign(
        way=accuracy["trained"].where(accuracy["trained"] != SOFT, "soft, decoded " + accuracy["decoded"])
    )
    summary = intervals(named, ["task", "way"], "accuracy")
    tasks = list(summary["task"].unique())
    for number, (way, line) in enumerate(summary.groupby("way", sort=False)):
        place = [tasks.index(task) + 0.2 * (number - 1.5) for task in line["task"]]
        ax.bar(
            place, line["estimate"], width=0.19, yerr=interval_ends(line), capsize=2, color=f"C{number}", label=str(way)
        )
    ax.axhline(chance, color="0.4", linestyle=":", linewidth=1)
    ax.set_xticks(range(len(tasks)), tasks)
    ax.set(ylabel="accuracy", ylim=(0, 1.05))


SETTING = "recall and vote over short sequences"
CLAIMS = (
    Claim(
        name="hard-attention-loses-little",
        chapter="hard_retrieval",
        provenance="literature",
        statement="Attention that reads one token a query, trained so, keeps the quality of soft attention.",
        rule="For each task the accuracy is at most 0.02 below that of soft attention (paired 95% t interval, runs).",
        refuted_by="a greater loss in each task",
        tables=("accuracy",),
        judge=hard_loses_little,
        figure="fig-hard-accuracy",
        threshold=Threshold("accuracy lost", LITTLE, (0.005, 0.02, 0.05, 0.1, 0.2), hard_loses_little),
        setting=SETTING,
    ),
    Claim(
        name="the-gradient-is-what-counts",
        chapter="hard_retrieval",
        provenance="ours",
        statement="Zero entropy does not stop training, a lost gradient does: with it, one-hot attention learns more.",
        rule="For each task straight-through training has the greater accuracy than the maximum's own gradient.",
        refuted_by="a smaller accuracy in each task",
        tables=("accuracy",),
        judge=gradient_is_what_counts,
        figure="fig-hard-accuracy",
        setting=SETTING,
    ),
)
