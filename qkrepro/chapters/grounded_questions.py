"""Grounded questions: attention over the cells of a grid, with and without a prior on the cell that is meant.

A question asks for the colour of a named object, or of the object to the right of a named one. Names are words in the
question and pictures in the cells; a rotation, which the head must learn, leads from one to the other. Source: book,
"Grounded questions"; the question is that of arXiv 2205.12616, the grid world is ours.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.verdicts import above, settings_verdict
from qkrepro.theory.spectrum import qk_moments, random_rotation
from qkrepro.theory.statistics import t_interval
from qkrepro.training.side_by_side import Heads, matrices, minimise

READS: tuple[str, ...] = ()
SOURCE = "2205.12616"
SPECTRUM_SAYS = (
    "Words and pictures are two spaces: W itself has hardly a mean eigenvalue, and a concentrated spectrum of positive "
    "mean once pictures are turned into words."
)
NONE, RIGHT, RANDOM = PRIORS = ("no prior", "prior on the right cell", "prior on a random cell")


class World(NamedTuple):
    """A grid of side × side cells with distinct names of `dim` entries, each of a colour, and noise in the pictures."""

    side: int = 4
    dim: int = 12
    names: int = 24
    colours: int = 6
    noise: float = 0.3


class Questions(NamedTuple):
    """Questions with their grids. Queries and cells have two halves: what a cell holds, and what its left one holds."""

    queries: Tensor  # (runs, n, 1, 2d)
    cells: Tensor  # (runs, n, T, 2d)
    colours: Tensor  # (runs, n, T)
    right: Tensor  # (runs, n, 1), the cell that is meant
    relation: Tensor  # (runs, n, 1), whether the question names the left neighbour of that cell

    def take(self, chosen: Tensor) -> "Questions":
        """Return the questions at these places, (runs, m)."""
        return Questions(*(part[torch.arange(len(chosen))[:, None], chosen] for part in self))


def draw_questions(world: World, words: Tensor, turn: Tensor, count: int, generator: Generator) -> Questions:
    """Draw `count` questions a run, half of them relations on average.

    world: the grid. words: (runs, names, d). generator: of all that is drawn. turn: (runs, d, d), orthogonal, from a
    word to its picture.
    """
    runs, total, side = len(words), world.side**2, world.side
    run, size = torch.arange(runs)[:, None, None], (runs, count, 1)
    names = torch.rand(runs, count, world.names, generator=generator).argsort(-1)[..., :total]  # distinct
    pictures = (words @ turn.mT)[run, names]  # (runs, n, T, d)
    first = torch.arange(total) % side == 0  # cells without a left neighbour
    cells = torch.cat([pictures, pictures.roll(1, dims=-2).masked_fill(first[:, None], 0.0)], dim=-1)
    cells += world.noise * torch.randn(cells.shape, generator=generator, dtype=cells.dtype)
    relation = torch.rand(size, generator=generator) < 0.5
    right = torch.randint(total, size, generator=generator)
    later = right - right % side + torch.randint(1, side, size, generator=generator)
    right = torch.where(relation, later, right)
    asked = words[run, names.gather(-1, right - relation.long())]  # (runs, n, 1, d)
    halves = [asked.masked_fill(hidden[..., None], 0.0) for hidden in (relation, ~relation)]
    colours = torch.randint(world.colours, (runs, count, total), generator=generator)
    return Questions(torch.cat(halves, dim=-1), cells, colours, right, relation)


def answer(heads: Heads, read: Tensor, questions: Questions) -> tuple[Tensor, Tensor]:
    """Return attention over the cells, (runs, n, T), and log probabilities of the colours, (runs, n, C)."""
    attention = torch.softmax(heads(questions.queries, questions.cells)[:, :, 0], dim=-1)
    seen = nn.functional.one_hot(questions.colours, read.shape[-1]).to(attention)
    return attention, ((attention[..., None, :] @ seen)[..., 0, :] @ read.mT).log_softmax(-1)


def train_with_priors(
    world: World, sizes: Sequence[int], *, runs: int, batch: int, tested: int, steps: int, rate: float, weight: float
) -> tuple[pd.DataFrame, pd.DataFrame, dict[tuple[str, int], tuple[Tensor, int]]]:
    """Train with each prior on each number of questions, from equal weights, grids and batches; test on new grids.

    world: the grid. sizes: numbers of questions to learn from. runs: trainings of each arm. batch, tested: questions a
    run, at each step and in the test. steps, rate: of Adam. The prior adds `weight` times −log of the attention on its
    cell to the loss. Returns the results (prior, questions, kind, run, accuracy, attention on the right cell), the
    spectra (prior, questions, run, own, grounded: N of W, and of W with pictures turned into words), and by prior and
    questions the attention, (T,), of run 0 in its first relation question, with the cell that is meant.
    """
    arms = list(product(sizes, PRIORS))
    options: dict[str, Any] = {"runs": runs, "batch": batch, "tested": tested, "steps": steps}
    parts = [_train_arm(world, size, prior, rate=rate, weight=weight, **options) for size, prior in arms]
    results, spectra, shown = zip(*parts, strict=True)
    pictures = {(prior, size): picture for (size, prior), picture in zip(arms, shown, strict=True)}
    return pd.concat(results, ignore_index=True), pd.concat(spectra, ignore_index=True), pictures


def _train_arm(
    world: World, size: int, prior: str, *, runs: int, batch: int, tested: int, steps: int, rate: float, weight: float
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[Tensor, int]]:
    """Train with one prior on `size` questions; results, spectra and one picture as `train_with_priors`.

    world, runs, batch, tested, steps, rate and weight are as there.
    """
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(runs, world.names, world.dim, generator=generator, dtype=torch.float64)
    turn = random_rotation(world.dim, batch=(runs,), generator=generator)
    test = draw_questions(world, words, turn, tested, generator)
    heads = Heads(runs, 2 * world.dim, 2 * world.dim, generator)
    read = matrices(runs, world.colours, world.colours, generator)
    known = draw_questions(world, words, turn, size, generator)
    anywhere = torch.randint(world.side**2, known.right.shape, generator=generator)
    cell = anywhere if prior == RANDOM else known.right

    def loss() -> Tensor:
        chosen = torch.randint(cell.shape[1], (runs, batch), generator=generator)
        part, meant = known.take(chosen), cell[torch.arange(runs)[:, None], chosen]
        attention, guesses = answer(heads, read, part)
        right = guesses.gather(-1, part.colours.gather(-1, part.right))
        on_cell = attention.gather(-1, meant).clamp_min(1e-12).log()
        return -(right + weight * (prior != NONE) * on_cell).mean((1, 2)).sum()

    minimise([*heads.parameters(), read], loss, steps=steps, rate=rate)
    with torch.no_grad():
        attention, guesses = answer(heads, read, test)
    correct = guesses.argmax(-1, keepdim=True) == test.colours.gather(-1, test.right)
    columns = {"accuracy": correct.double(), "attention": attention.gather(-1, test.right)}
    columns |= {"run": torch.arange(runs)[:, None].expand(runs, tested), "relation": test.relation}
    table = pd.DataFrame({name: column.flatten().numpy() for name, column in columns.items()})
    table["kind"] = table.pop("relation").map({True: "relation", False: "object"})
    results = table.groupby(["kind", "run"]).mean().reset_index().assign(prior=prior, questions=size)
    w_q, w_k = heads.w_q.detach(), heads.w_k.detach()
    turns = torch.kron(torch.eye(2, dtype=torch.float64), turn.contiguous())  # (runs, 2d, 2d), of both halves
    numbers = [m.trace.square() / m.frobenius_sq for m in (qk_moments(w_q, w_k), qk_moments(w_q, w_k @ turns))]
    table = pd.DataFrame({"own": numbers[0].numpy(), "grounded": numbers[1].numpy(), "run": range(runs)})
    spectra = table.assign(prior=prior, questions=size)
    one = int(test.relation[0, :, 0].long().argmax())
    return results, spectra, (attention[0, one], int(test.right[0, one]))


def gains(results: pd.DataFrame, better: str, worse: str, column: str) -> "pd.Series[float]":
    """Return a column's difference between the better and the worse prior, paired by run.

    results: as `train_with_priors` gives them. The differences are indexed by questions, kind and run.
    """
    keys = ["questions", "kind", "run"]
    wide = results.pivot(index=keys, columns="prior", values=column).reindex(columns=list(PRIORS))
    return wide[better] - wide[worse]


def gained(
    tables: Tables, bar: float = 0.0, *, better: str = RIGHT, worse: str = NONE, column: str = "accuracy"
) -> Verdict:
    """Judge whether the better prior exceeds the worse one in a column by more than the bar.

    tables: `results` has prior, questions, kind, run, accuracy, attention.
    """
    groups = gains(tables["results"], better, worse, column).groupby(["questions", "kind"], sort=False)
    return settings_verdict({f"{n} questions, {kind}": above(t_interval(line), bar) for (n, kind), line in groups})


def helps_most_when_scarce(tables: Tables) -> Verdict:
    """Judge the gain in accuracy at the fewest questions minus that at the most, by kind; table as above."""
    wide = gains(tables["results"], RIGHT, NONE, "accuracy").unstack("questions").sort_index(axis=1)
    groups = (wide.iloc[:, 0] - wide.iloc[:, -1]).groupby(level="kind") if len(wide) else ()
    return settings_verdict({str(kind): above(t_interval(line), 0.0) for kind, line in groups})


def attention_gained(tables: Tables, bar: float = 0.0) -> Verdict:
    """Judge what the right prior adds to the attention on the cell that is meant; table as in `gained`."""
    return gained(tables, bar, column="attention")


def harmed_by_a_wrong_prior(tables: Tables) -> Verdict:
    """Judge whether accuracy without a prior is above that with one on random cells; table as in `gained`."""
    return gained(tables, better=NONE, worse=RANDOM)


SETTING = "a grid world of 4 × 4 cells"
grounded = partial(Claim, chapter="grounded_questions", tables=("results",), figure="fig-grounded", setting=SETTING)
CLAIMS = (
    grounded(
        name="a-grounding-prior-helps",
        provenance="literature",
        statement="A grounding prior on attention raises the accuracy of the answers.",
        rule="For each number and kind of questions accuracy is greater with it (paired 95% t interval over runs).",
        refuted_by="a smaller accuracy for each",
        judge=gained,
        threshold=Threshold("accuracy gained", 0.0, (0.0, 0.02, 0.05, 0.1, 0.2), gained),
    ),
    grounded(
        name="a-grounding-prior-shows-the-cell",
        provenance="literature",
        statement="A grounding prior makes attention interpretable: on new grids more of it lies on the cell meant.",
        rule="For each number and kind of questions that attention is greater with it (paired 95% t interval, runs).",
        refuted_by="less of it for each",
        judge=attention_gained,
        threshold=Threshold("attention gained", 0.0, (0.0, 0.02, 0.05, 0.1, 0.2), attention_gained),
    ),
    grounded(
        name="a-prior-helps-most-when-answers-are-scarce",
        provenance="literature",
        statement="The gain is greatest where there are few questions with answers to learn from.",
        rule="For each kind the gain in accuracy is greater at the fewest questions than at the most (paired, runs).",
        refuted_by="a smaller gain for each kind",
        judge=helps_most_when_scarce,
    ),
    grounded(
        name="a-prior-must-be-right",
        provenance="ours",
        statement="It is the right cell that helps: a prior of the same weight on random cells lowers the accuracy.",
        rule="For each number and kind of questions accuracy is smaller with it (paired 95% t interval over runs).",
        refuted_by="a greater accuracy for each",
        judge=harmed_by_a_wrong_prior,
    ),
)
