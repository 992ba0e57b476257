"""Attention as explanation: does it rank tokens as the information does that they share with the answer?

T tokens vote: each says a number, and the answer is the sign of their weighted sum. The weight of a token is a matter
of the token or of a question. Source: book, "Attention as explanation"; the question is that of arXiv 2211.07714, the
votes are ours.
"""

import math
from functools import partial
from itertools import product
from typing import NamedTuple

import pandas as pd
import torch
from scipy.stats import spearmanr
from sklearn import config_context
from sklearn.feature_selection import mutual_info_classif
from torch import Generator, Tensor, nn

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.verdicts import above, settings_verdict
from qkrepro.theory.attention import attention_entropy
from qkrepro.theory.statistics import t_interval
from qkrepro.training.side_by_side import Heads, matrices, minimise, through

READS: tuple[str, ...] = ()
SOURCE = "2211.07714"
SPECTRUM_SAYS = (
    "Only dot products have a QK spectrum. It concentrates where a question must find what is like it, and not where "
    "tokens themselves say what counts."
)
DOT, ADDITIVE, DEEP = SCORES = ("scaled dot product", "additive", "deep")
OWN, ASKED = TASKS = ("the token decides", "the question decides")
SOFTMAX, GUMBEL = WEIGHTS = ("softmax", "cold Gumbel")


class Votes(NamedTuple):
    """Sequences of T tokens in order of falling weight, each with a name and what it says; (runs, n, ...)."""

    queries: Tensor  # (runs, n, 1, d)
    names: Tensor  # (runs, n, T, d)
    numbers: Tensor  # (runs, n, T), standard Gaussian
    answers: Tensor  # (runs, n), 0 or 1


def vote_weights(length: int) -> Tensor:
    """Return the weights of the tokens, (length,): 1, and half as much from each to the next."""
    return 0.5 ** torch.arange(length, dtype=torch.float64)


def draw_votes(task: str, vectors: Tensor, length: int, count: int, noise: float, generator: Generator) -> Votes:
    """Draw `count` sequences a run; vectors: (runs, 2 * length + 1, d), the names of symbols, and an idle query.

    task: who decides. noise: standard deviation of what is added to the sum of votes. generator: of all that is drawn.

    Where the token decides, symbols 2i and 2i + 1 have weight i; where the question does, any symbol may have any
    weight, and the query is the sum of the names by weight.
    """
    runs, symbols = len(vectors), 2 * length
    weights, run = vote_weights(length), torch.arange(runs)[:, None, None]
    mixed = torch.rand(runs, count, symbols, generator=generator).argsort(-1)[..., :length]
    paired = 2 * torch.arange(length) + torch.randint(2, (runs, count, length), generator=generator)
    names = vectors[run, paired if task == OWN else mixed]  # (runs, n, T, d)
    asked = (weights[:, None] * names).sum(-2, keepdim=True)
    queries = vectors[:, None, -1:].expand_as(asked) if task == OWN else asked
    numbers = torch.randn(runs, count, length, generator=generator, dtype=torch.float64)
    error = noise * torch.randn(runs, count, generator=generator, dtype=torch.float64)
    return Votes(queries, names, numbers, ((numbers @ weights + error) > 0).double())


class Voter(nn.Module):
    """Attention by one of the scores, over values number · (b + uᵀname); values start equal, b = 1 and u = 0."""

    def __init__(self, score: str, runs: int, dim: int, generator: Generator) -> None:
        """Draw weights for all scores from the generator, (runs, …, dim), so that those that they share begin equal."""
        super().__init__()
        self.score, self.heads = score, Heads(runs, dim, dim, generator)
        self.last, self.inner = matrices(runs, 1, dim, generator), matrices(runs, dim, dim, generator)
        self.value = nn.Parameter(torch.zeros(runs, 1, dim, dtype=torch.float64))
        self.base = nn.Parameter(torch.ones(runs, 1, 1, dtype=torch.float64))

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the scores of the tokens, (runs, n, T): qᵀk/√d, vᵀtanh(q + k), or vᵀtanh(U tanh(q + k))."""
        if self.score == DOT:
            dots: Tensor = self.heads(queries, keys)[:, :, 0]
            return dots
        hidden = torch.tanh(through(queries, self.heads.w_q) + through(keys, self.heads.w_k))
        hidden = torch.tanh(through(hidden, self.inner)) if self.score == DEEP else hidden
        return through(hidden, self.last)[..., 0]

    def forward(self, votes: Votes, temperature: float, noise: Generator | None) -> tuple[Tensor, Tensor]:
        """Return attention, (runs, n, T), and the logit of answer 1, (runs, n); a generator draws Gumbel noise."""
        logits = self.logits(votes.queries, votes.names)
        if noise is not None:
            logits = logits - torch.empty_like(logits).exponential_(generator=noise).log()
        attention = torch.softmax(logits / temperature, dim=-1)
        value = votes.numbers * (self.base + (votes.names * self.value[:, None]).sum(-1))
        return attention, 4 * (attention * value).sum(-1)


def token_information(numbers: Tensor, answers: Tensor) -> Tensor:
    """Return the mutual information, in nats, of the number that each token says, (n, T), and answers, (n,): (T,).

    Estimated from nearest neighbours (Ross 2014), as scikit-learn does, and clipped at 0.
    """
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return torch.from_numpy(mutual_info_classif(numbers.numpy(), answers.numpy(), random_state=0))


def train_voters(
    length: int, temperature: float, *, dim: int, runs: int, batch: int, tested: int, steps: int, rate: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every score with softmax and with Gumbel noise at a temperature on both tasks, from equal weights and data.

    length: tokens that vote. dim: of names. runs: trainings of each voter. batch, tested: votes a run, at each step and
    in the test. steps, rate: of Adam. Tested without noise. Returns a row a token (task, score, weights, run, token,
    attention, information in nats), and a row a run (task, score, weights, run, accuracy, skew: log T − entropy of
    attention, in nats, information: its sum over tokens, agreement: Spearman's correlation of attention and
    information, effective_number: N of W_QK).
    """
    sizes = {"dim": dim, "runs": runs, "batch": batch, "tested": tested, "steps": steps}
    parts = [_train_on(task, length, temperature, rate=rate, **sizes) for task in TASKS]
    tokens, voters = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    return tokens, voters


def _train_on(
    task: str, length: int, cold: float, *, dim: int, runs: int, batch: int, tested: int, steps: int, rate: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every score on one task, on votes that are drawn once for all; tables as `train_voters`.

    cold: the temperature there; length, dim, runs, batch, tested, steps and rate are as there.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(runs, 2 * length + 1, dim, generator=generator, dtype=torch.float64)
    test, start = draw_votes(task, vectors, length, tested, 0.0, generator), generator.get_state()
    arms = []
    for score, kind in product(SCORES, WEIGHTS):
        voter = Voter(score, runs, dim, generator.set_state(start))
        noise = torch.Generator().manual_seed(1) if kind == GUMBEL else None
        arms.append((voter, cold if noise else 1.0, noise, {"task": task, "score": score, "weights": kind}))

    def loss() -> Tensor:
        votes = draw_votes(task, vectors, length, batch, 0.5, generator)
        guesses = [voter(votes, temperature, noise)[1] for voter, temperature, noise, _ in arms]
        judged = nn.functional.binary_cross_entropy_with_logits
        return torch.stack([judged(guess, votes.answers) * runs for guess in guesses]).sum()

    minimise([weight for voter, *_ in arms for weight in voter.parameters()], loss, steps=steps, rate=rate)
    tables = [_measure(voter, temperature, test, arm) for voter, temperature, _, arm in arms]
    tokens, voters = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return tokens, voters


def _measure(voter: Voter, temperature: float, test: Votes, arm: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of tokens and of runs of a voter at its temperature, on test votes, marked with its arm."""
    with torch.no_grad():
        attention, guess = voter(test, temperature, None)
    spread = voter.heads.spectrum()["effective_number"]
    length = attention.shape[-1]
    tokens, voters = [], []
    for run, (mean, answers) in enumerate(zip(attention.mean(1), (guess > 0).double(), strict=True)):
        shared = token_information(test.numbers[run], answers)
        columns = {"token": range(length), "attention": mean.tolist(), "information": shared.tolist()}
        tokens.append(pd.DataFrame({"run": run} | columns))
        row = {"run": run, "accuracy": float((answers == test.answers[run]).double().mean())}
        row["skew"] = math.log(length) - float(attention_entropy(attention[run]).mean())
        row["information"] = float(shared.sum())
        row["agreement"] = float(spearmanr(mean, shared).statistic)
        voters.append(row | {"effective_number": float(spread[run])})
    return pd.concat(tokens, ignore_index=True).assign(**arm), pd.DataFrame(voters).assign(**arm)


def others_beat_dot(table: pd.DataFrame, column: str, bar: float = 0.0) -> Verdict:
    """Judge additive and deep minus dot product by task, paired by run: task, score, weights, run, column."""
    wide = table[table["weights"] == SOFTMAX].pivot(index=["task", "run"], columns="score", values=column)
    cases: dict[str, bool | None] = {}
    for task, line in wide.groupby("task", sort=False):
        cases |= {f"{task}, {name}": above(t_interval(line[name] - line[DOT]), bar) for name in (ADDITIVE, DEEP)}
    return settings_verdict(cases)


def cold_gumbel_adds(table: pd.DataFrame, column: str, bar: float = 0.0) -> Verdict:
    """Judge cold Gumbel minus softmax by task and score, paired by run; table as above."""
    wide = table.pivot(index=["task", "score", "run"], columns="weights", values=column)
    groups = wide.groupby(["task", "score"], sort=False)
    cases = {f"{task}, {score}": line[GUMBEL] - line[SOFTMAX] for (task, score), line in groups}
    return settings_verdict({name: above(t_interval(line), bar) for name, line in cases.items()})


def more_information(tables: Tables, bar: float = 0.0) -> Verdict:
    """Judge the information that other scores add to dot products."""
    return others_beat_dot(tables["voters"], "information", bar)


def better_agreement(tables: Tables) -> Verdict:
    """Judge the agreement that other scores add to dot products."""
    return others_beat_dot(tables["voters"], "agreement")


def more_skew(tables: Tables, bar: float = 0.0) -> Verdict:
    """Judge the skew that cold Gumbel noise adds."""
    return cold_gumbel_adds(tables["voters"], "skew", bar)


def skew_agrees(tables: Tables) -> Verdict:
    """Judge the agreement that cold Gumbel noise adds."""
    return cold_gumbel_adds(tables["voters"], "agreement")


explanation = partial(
    Claim,
    chapter="attention_as_explanation",
    provenance="literature",
    tables=("voters",),
    figure="fig-explanation",
    setting="votes of six tokens",
)
CLAIMS = (
    explanation(
        name="other-scores-keep-more-information",
        statement="Additive and deep scores keep more information between hidden states and output than dot products.",
        rule="For each task either has the greater information, summed over tokens (paired 95% t interval over runs).",
        refuted_by="less information for each task and score",
        judge=more_information,
        threshold=Threshold("information gained, nats", 0.0, (0.0, 0.02, 0.05, 0.1), more_information),
    ),
    explanation(
        name="other-scores-rank-better",
        statement="Attention by additive and deep scores ranks tokens more as information does than dot products.",
        rule="For each task either score has the greater rank correlation (paired 95% t interval over runs).",
        refuted_by="a smaller correlation for each task and score",
        judge=better_agreement,
    ),
    explanation(
        name="cold-gumbel-skews",
        statement="Training with Gumbel noise at a temperature below one makes attention more skewed than softmax.",
        rule="For each task and score attention, tested without noise, has the smaller entropy (paired, as above).",
        refuted_by="a greater entropy for each",
        judge=more_skew,
        threshold=Threshold("entropy lost, nats", 0.0, (0.0, 0.05, 0.1, 0.2, 0.5), more_skew),
    ),
    explanation(
        name="skew-explains-better",
        statement="More skewed attention is the better explanation: cold Gumbel ranks tokens more as information does.",
        rule="For each task and score it has the greater rank correlation (paired 95% t interval over runs).",
        refuted_by="a smaller correlation for each",
        judge=skew_agrees,
    ),
)
