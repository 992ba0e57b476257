"""Where the random walk breaks: the tokens of a model against a walk of the same increments, and what each predicts.

Tokens x are (sequences, T, d), as the query and key projections of a head see them. A walk's increments are independent
and have one covariance Σ, so the variance of its tokens grows with the location.
Source: book, "Theory in trained models".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import safetensors.torch
import torch
from torch import Generator, Tensor

from qkrepro.attention import saturation
from qkrepro.configuration import RunConfiguration
from qkrepro.corpus import load_corpus
from qkrepro.errors import RunError, ShapeError, check_integer
from qkrepro.evaluation import cut, measure
from qkrepro.rank_measures import rank_residual
from qkrepro.starts import build_model
from qkrepro.tokens import random_walk
from qkrepro.trained_profiles import total_variation
from qkrepro.training_state import BEST
from qkrepro.transformer import LanguageModel, QKWeights

MEASURED = "measured"
LAWS = ("prediction", "drawn walk", "normal", "shuffled")
CHECKS = ("neighbours", "growth", "halves", "path", "residual")


class Seen(NamedTuple):
    """A model of one layer, and the validation sequences on which it is looked at."""

    model: LanguageModel
    tokens: Tensor  # (sequences, T), int64


def seen_model(
    configuration: RunConfiguration, folder: str | Path | None = None, data: str | Path | None = None
) -> Seen:
    """The model of a run at its best checkpoint, with about `measured_sequences` validation sequences.

    folder: where `qkrepro train` worked (a committed record holds no weights); None gives the model at update 0.
    data: where WikiText-2 lies. Raises RunError when the folder has no weights, CorpusError for the corpus.
    """
    corpus = load_corpus(configuration.corpus, data, configuration.vocabulary)
    model = build_model(configuration, corpus.vocabulary)
    if folder is not None:
        weights = Path(folder) / BEST
        if not weights.is_file():
            raise RunError(f"{weights} is not there; allowed: the folder in which a run was trained")
        model.load_state_dict(safetensors.torch.load_file(weights))
    blocks = cut(corpus.valid, configuration.length, configuration.measured_sequences * configuration.length)
    return Seen(model, blocks[0].inputs)


@torch.no_grad()
def head_tokens(seen: Seen) -> Tensor:
    """What the first layer's query and key projections see: float64, (sequences, T, d_model)."""
    return seen.model.eval().trace(seen.tokens)[0].inputs.double()  # without dropout


def increment_covariance(x: Tensor) -> Tensor:
    """Σ, the covariance (d, d) of x_{t+1} − x_t over all sequences and locations about their mean, float64."""
    return torch.cov(_increments(x).flatten(0, 1).T)


def walk_like(x: Tensor, generator: Generator, sequences: int | None = None) -> Tensor:
    """Random walks of the length and the increments' covariance of x, as many as x or `sequences`: (n, T, d)."""
    number = len(x) if sequences is None else sequences
    return random_walk(x.shape[1], x.shape[2], cov=increment_covariance(x), batch=number, generator=generator)


def increment_correlation(x: Tensor, lags: Sequence[int]) -> Tensor:
    """Correlation E ε_tᵀε_{t+k} / tr Σ of the increments, about their mean, at each lag k: float64, (lags,).

    0 at every lag for a walk; −½ at lag 1 and 0 beyond for independent tokens. Raises ArgumentError for a lag < 1.
    """
    steps = _increments(x)
    steps = steps - steps.mean((0, 1))  # (sequences, T − 1, d)
    for lag in lags:
        check_integer("lags", lag, at_least=1)
    products = [(steps[:, lag:] * steps[:, :-lag]).sum(-1).mean() for lag in lags]
    return torch.stack(products) / steps.square().sum(-1).mean()


def variance_growth(x: Tensor) -> Tensor:
    """Variance of the token at each location, about the mean token of that location, over tr Σ: float64, (T,).

    t for a walk; ½ everywhere for independent tokens. Raises ShapeError for fewer than two sequences.
    """
    if len(x) < 2:
        raise ShapeError(f"tokens has shape {tuple(x.shape)}; allowed: (sequences, T, d), sequences >= 2")
    return x.double().var(0).sum(-1) / increment_covariance(x).trace()


def covariance_change(x: Tensor) -> float:
    """‖Σ₁ − Σ₂‖_F / ‖Σ‖_F for the increments of the first and the second half of the sequences; 0 for a long walk."""
    half = x.shape[1] // 2
    first, second = increment_covariance(x[:, : half + 1]), increment_covariance(x[:, half:])
    return float((first - second).norm() / increment_covariance(x).norm())


def path_share(x: Tensor) -> float:
    """Share of tr Σ that the mean path E x_t brings, the same in all sequences; 0 for a walk. Unbiased: may be below 0.

    What is left comes from what differs between sequences. Raises ShapeError for fewer than two sequences.
    """
    steps = _increments(x) - _increments(x).mean((0, 1))  # (sequences, T − 1, d)
    if len(x) < 2:
        raise ShapeError(f"tokens has shape {tuple(x.shape)}; allowed: (sequences, T, d), sequences >= 2")
    noise = steps.var(0).sum(-1) / len(x)  # (T − 1,), variance of the mean step
    return float((steps.mean(0).square().sum(-1) - noise).mean() / steps.square().sum(-1).mean())


def walk_checks(x: Tensor) -> dict[str, float]:
    """Five numbers that tell a walk, here with its values, from independent tokens.

    neighbours: `increment_correlation` at lag 1 (0; independent −½). growth: `variance_growth` of the last token over T
    (1; independent 1/2T). halves: `covariance_change` (near 0 for both). path: `path_share` (0 for both; not so where
    positions are added). residual: mean relative distance of the sequences to equal tokens (√((T − 1)/3T); independent
    nearly 1).
    """
    return {
        "neighbours": float(increment_correlation(x, [1])[0]),
        "growth": float(variance_growth(x)[-1]) / x.shape[1],
        "halves": covariance_change(x),
        "path": path_share(x),
        "residual": float(rank_residual(x).mean()),
    }


@torch.no_grad()
def last_query_logits(head: QKWeights, x: Tensor) -> Tensor:
    """Logits of the last query over all keys, divided by √d_head, biases included: float64, (sequences, T)."""
    w_q, w_k, b_q, b_k = (part.double() for part in (head.w_q, head.w_k, head.b_q, head.b_k))
    query = x[:, -1].double() @ w_q.T + b_q  # (sequences, d_head)
    keys = x.double() @ w_k.T + b_k  # (sequences, T, d_head)
    logits: Tensor = torch.einsum("sh,sth->st", query, keys) / len(w_q) ** 0.5
    return logits


def open_share(logits: Tensor) -> Tensor:
    """Share of sequences in which the linearised softmax does not clip the key: logits (sequences, T) to (T,)."""
    return (saturation(logits) == 0).double().mean(0)


def normal_share(logits: Tensor) -> Tensor:
    """The same share if each key's centred logit were normal with the mean and variance it has: (T,), float64."""
    centred = logits.double() - logits.double().mean(-1, keepdim=True)  # (sequences, T)
    mean, deviation = centred.mean(0), centred.std(0)
    upper, lower = (logits.shape[-1] - 1 - mean) / deviation, (-1 - mean) / deviation
    share: Tensor = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    return share


def profile_laws(seen: Seen, generator: Generator, draws: int) -> pd.DataFrame:
    """The profile of the first head's last query as measured, and as four laws of the tokens predict it.

    "prediction": the walk by the normal form at finite length, as runs record it. "drawn walk": `draws` walks of the
    same Σ. "normal": `normal_share`, no walk. "shuffled": the model's tokens after the words of all sequences have
    changed places, as if they were independent. Returns law ("measured" or one of LAWS), location in (0, 1], share.
    """
    x, head = head_tokens(seen), seen.model.qk_weights()[0]
    logits, arrays = last_query_logits(head, x), measure(seen.model, seen.tokens).arrays
    order = torch.randperm(seen.tokens.numel(), generator=generator)
    mixed = Seen(seen.model, seen.tokens.flatten()[order].view_as(seen.tokens))
    shares = {MEASURED: open_share(logits), "prediction": torch.from_numpy(arrays["predicted_profile"][0, 0])}
    shares["drawn walk"] = open_share(last_query_logits(head, walk_like(x, generator, draws)))
    shares["normal"] = normal_share(logits)
    shares["shuffled"] = open_share(last_query_logits(head, head_tokens(mixed)))
    location = [(place + 1) / x.shape[1] for place in range(x.shape[1])]
    return pd.concat(
        [pd.DataFrame({"law": law, "location": location, "share": share.tolist()}) for law, share in shares.items()],
        ignore_index=True,
    )


def law_distances(laws: pd.DataFrame) -> dict[str, float]:
    """Total variation between the measured profile and each of LAWS, by law. laws: as `profile_laws` gives them."""
    shares = {law: part["share"].to_numpy() for law, part in laws.groupby("law", sort=False)}
    return {law: total_variation(shares[law], shares[MEASURED]) for law in LAWS}


def _increments(x: Tensor) -> Tensor:
    if x.ndim != 3 or x.shape[1] < 3:
        raise ShapeError(f"tokens has shape {tuple(x.shape)}; allowed: (sequences, T, d), T >= 3")
    return x.double().diff(dim=1)
