"""Which keys attention can do without: single offsets masked out of MiniLM, and a mask that is learnt.

Source: book, "The mask that is learnt"; the question is that of arXiv 2102.12871, both experiments are ours.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor, nn

from qkrepro.evidence.claims import Claim, Tables, Verdict
from qkrepro.evidence.style import draw_intervals, interval_ends
from qkrepro.evidence.verdicts import above, correlation_verdict, settings_verdict
from qkrepro.models.checkpoint import qk_layers
from qkrepro.models.head_products import products_in_covariance
from qkrepro.models.minilm import layer_views, minilm_network
from qkrepro.models.token_covariance import covariance
from qkrepro.theory.statistics import intervals, t_interval
from qkrepro.training.side_by_side import Heads, matrices, minimise

READS = ("notebooks/texts/walk.txt",)
SOURCE = "2102.12871"
SPECTRUM_SAYS = "A positive trace draws attention to the diagonal; what is attended there the residual carries anyway."
RANDOM = "random"  # the name of the mask that hides one key of each query, drawn at random


@torch.no_grad()
def offset_damage(folder: Path, windows: Sequence[Tensor], offsets: Sequence[int], *, seed: int) -> pd.DataFrame:
    """Return how much the output of a MiniLM moves when every query loses the key at an offset, in every head.

    folder: of the model. windows: token numbers, (T,) each. offsets: of the hidden keys. seed: of the random key.
    Returns one row a window and offset (query to key, in tokens; "0" the diagonal, "random" one other key a query):
    damage, ‖change of the last hidden states‖_F over their norm; attended, the share of attention that the keys had,
    mean over layers, heads and queries. [CLS] and [SEP] keep all their keys, are never hidden, and are not counted.
    """
    network = minilm_network(folder)
    generator, frames = torch.Generator().manual_seed(seed), []
    for number, window in enumerate(windows):
        whole = network(input_ids=window[None], output_attentions=True)
        paid = torch.cat(whole.attentions).mean((0, 1))  # (T, T), over layers and heads
        names, masks = zip(*_hidden(len(window), offsets, generator), strict=True)
        hidden = torch.stack(masks)  # (masks, T, T)
        bias = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)[:, None]
        masked = network(input_ids=window.expand(len(hidden), -1), attention_mask=bias).last_hidden_state[:, 1:-1]
        was = whole.last_hidden_state[0, 1:-1]
        damage = (masked - was).flatten(1).norm(dim=1) / was.norm()
        attended = (paid * hidden).sum((1, 2)) / (len(window) - 2)
        columns = {"offset": names, "damage": damage.numpy(), "attended": attended.numpy()}
        frames.append(pd.DataFrame({"window": number} | columns))
    return pd.concat(frames, ignore_index=True)


def _hidden(length: int, offsets: Sequence[int], generator: Generator) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the mask (T, T), row = query, True where hidden, of each offset and of the random key."""
    inner = torch.zeros(length, length, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    for offset in offsets:
        yield str(offset), torch.ones(length, length, dtype=torch.bool).tril(offset).triu(offset) & inner
    chance = torch.rand(length, length, generator=generator).masked_fill(~inner, -1).fill_diagonal_(-1)
    yield RANDOM, (chance == chance.amax(-1, keepdim=True)) & inner


def diagonal_heads(folder: Path, windows: Sequence[Tensor]) -> pd.DataFrame:
    """Return layer, head, diagonal (attention of a token to itself, times T), trace_cov: tr(WΣ)/λ of each head.

    tr(WΣ)/λ is what the spectrum predicts: by how much, on average, a token's logit with itself exceeds that with
    another one, if tokens are independent with covariance Σ.
    """
    tokens: dict[int, list[Tensor]] = {}
    diagonal: dict[int, list[Tensor]] = {}
    for view in layer_views(folder, list(windows)):
        tokens.setdefault(view.layer, []).append(view.inputs)
        own = view.attention.diagonal(dim1=-2, dim2=-1)[:, 1:-1] * view.attention.shape[-1]  # (heads, T − 2)
        diagonal.setdefault(view.layer, []).append(own)
    frames = []
    for layer in qk_layers(folder):
        own = torch.cat(diagonal[layer.layer], dim=-1).double().mean(-1)
        trace = layer.multiplier * products_in_covariance(layer.w_q, layer.w_k, covariance(tokens[layer.layer])).trace()
        columns = {"head": range(layer.heads), "diagonal": own.numpy(), "trace_cov": trace}
        frames.append(pd.DataFrame({"layer": layer.layer} | columns))
    return pd.concat(frames, ignore_index=True)


def learnt_gates(
    skip: bool, *, runs: int, dim: int, length: int, batch: int, steps: int, rate: float, price: float, reach: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train a head with a differentiable mask on y_t = B(x_t + x_{t−1}), with a skip connection around it or without.

    The mask multiplies attention by a sigmoid gate for each distance 0 … reach and costs `price` times their sum;
    logits are x_tᵀ W x_s/√d, the output O(skip · x_t + V Σ A_ts x_s).

    Parameters
    ----------
    skip: whether a skip connection passes the token.
    runs: heads trained side by side, each with weights and data of its own.
    dim, length, batch: d, T and sequences a step and run.
    steps, rate: of Adam.
    price, reach: of an open gate, and the greatest distance with one.

    Returns
    -------
    run, distance, gate, skip; and the spectra of the runs.
    """
    generator = torch.Generator().manual_seed(0)
    heads, value, out = Heads(runs, dim, dim, generator), *(matrices(runs, dim, dim, generator) for _ in range(2))
    target = matrices(runs, dim, dim, generator).detach()
    scores = nn.Parameter(torch.zeros(runs, reach + 1, dtype=torch.float64))
    place = torch.arange(length)
    distance = place[:, None] - place  # (T, T), query − key
    outside = (distance < 0) | (distance > reach)

    def loss() -> Tensor:
        x = torch.randn(runs, batch, length, dim, generator=generator, dtype=torch.float64)
        gates = nn.functional.logsigmoid(scores)[:, distance.clamp(0, reach)]  # (runs, T, T)
        attention = torch.softmax((heads(x, x) + gates[:, None]).masked_fill(outside, -torch.inf), dim=-1)
        y = (skip * x + attention @ x @ value.mT[:, None]) @ out.mT[:, None]
        target_values = (x[:, :, 1:] + x[:, :, :-1]) @ target.mT[:, None]
        error = nn.functional.mse_loss(y[:, :, 1:], target_values, reduction="none").mean((1, 2, 3))  # (runs,)
        return (error + price * torch.sigmoid(scores).sum(-1)).sum()

    minimise([*heads.parameters(), value, out, scores], loss, steps=steps, rate=rate)
    learnt = torch.sigmoid(scores).detach().tolist()
    gates = [(run, at, gate) for run, row in enumerate(learnt) for at, gate in enumerate(row)]
    table = pd.DataFrame(gates, columns=["run", "distance", "gate"])
    return table.assign(skip=skip), heads.spectrum().assign(skip=skip)


def diagonal_is_least_needed(tables: Tables) -> Verdict:
    """Judge each other mask of `damage` (window, offset, damage) by its paired difference to the diagonal's."""
    wide = tables["damage"].pivot(index="window", columns="offset", values="damage")
    others = [name for name in wide if str(name) != "0"] if len(wide) > 1 else []
    return settings_verdict({f"offset {name}": above(t_interval(wide[name] - wide["0"]), 0) for name in others})


def trace_draws_to_diagonal(tables: Tables) -> Verdict:
    """Judge the rank correlation of `correlation`: quantity, correlation, low, high."""
    return correlation_verdict(tables["correlation"])


def skip_closes_the_gate(tables: Tables) -> Verdict:
    """Judge the diagonal's gate in `gates` (run, distance, gate, skip): lower with the skip connection, by run."""
    diagonal = tables["gates"].query("distance == 0").pivot(index="run", columns="skip", values="gate")
    if len(diagonal) < 2:
        return settings_verdict({})
    return settings_verdict({"gate of the diagonal": above(t_interval(diagonal[False] - diagonal[True]), 0)})


def plot_damage(damage: pd.DataFrame, ax: Axes) -> None:
    """Draw the damage of each mask with its interval over windows; the random key last."""
    summary = intervals(damage, ["offset"], "damage")
    colours = ["C1" if name == "0" else "0.6" if name == RANDOM else "C0" for name in summary["offset"]]
    ax.bar(summary["offset"], summary["estimate"], yerr=interval_ends(summary), color=colours, capsize=2)
    ax.set(xlabel="key that every query loses: offset in tokens", ylabel="relative change of the output")


def plot_gates(gates: pd.DataFrame, ax: Axes) -> None:
    """Draw the learnt gate over the distance with intervals over runs, a line with and one without skip connection."""
    for skip, marker in ((True, "o"), (False, "s")):
        line = intervals(gates[gates["skip"] == skip], ["distance"], "gate")
        label = f"{'with' if skip else 'without'} skip connection"
        draw_intervals(ax, line["distance"], line, fmt="-", marker=marker, capsize=2, label=label)
    ax.set(xlabel="distance, tokens back", ylabel="gate", ylim=(-0.03, 1.03))
    ax.legend()


CLAIMS = (
    Claim(
        name="diagonal-is-least-needed",
        chapter="sparse_mask",
        provenance="literature",
        statement="Of all keys, a query can do best without itself: removing the diagonal changes the output least.",
        rule=(
            "For each other offset, and for one random key a query, the output changes more than without the diagonal: "
            "the paired 95% t interval over windows lies above 0."
        ),
        refuted_by="a smaller change without some other key, and a greater one without none",
        tables=("damage",),
        judge=diagonal_is_least_needed,
        figure="fig-sparse-damage",
        setting="MiniLM on one story, offsets of up to five tokens",
    ),
    Claim(
        name="trace-draws-to-diagonal",
        chapter="sparse_mask",
        provenance="ours",
        statement="Heads whose W has the greater trace in the covariance of their tokens attend more to the diagonal.",
        rule="The rank correlation over heads has a 95% bootstrap interval (layers resampled whole) above 0.",
        refuted_by="an interval below 0",
        tables=("correlation",),
        judge=trace_draws_to_diagonal,
        figure="fig-sparse-gates",
        setting="the 72 heads of MiniLM on one story",
    ),
    Claim(
        name="skip-closes-the-gate",
        chapter="sparse_mask",
        provenance="ours",
        statement="A learnt mask closes the diagonal more when a skip connection passes the token itself.",
        rule="The gate of distance 0 is lower with the skip connection: paired 95% t interval over runs above 0.",
        refuted_by="an interval below 0",
        tables=("gates",),
        judge=skip_closes_the_gate,
        figure="fig-sparse-gates",
        setting="one head trained on the sum of two neighbours",
    ),
)
