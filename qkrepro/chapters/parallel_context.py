"""A context encoded in pieces that do not see each other: attention entropy and disagreement of MiniLM's queries.

Source: book, "A context in pieces"; the question is that of arXiv 2412.16545, the experiment and the rules are ours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from qkrepro.evidence.claims import Claim, Tables, Verdict
from qkrepro.evidence.style import draw_intervals
from qkrepro.evidence.verdicts import above, both, correlation_verdict, settings_verdict
from qkrepro.models.minilm import minilm_network
from qkrepro.theory.attention import attention_entropy
from qkrepro.theory.statistics import Interval, intervals, t_interval

READS = ("notebooks/texts/walk.txt",)
SOURCE = "2412.16545"
SPECTRUM_SAYS = "The spectrum of W stays; where it is small in the covariance of tokens, entropy has no room to rise."
REMEDIES = ("sink", "best half")
WAYS = ("pieces", "places kept", *REMEDIES, "random half")


class Encoding(NamedTuple):
    """Group of each token (0 the prefix, then the pieces, last the query), what it sees, (T, T), and its place."""

    group: Tensor
    seen: Tensor
    place: Tensor


Ways: TypeAlias = dict[tuple[str, int], Encoding]  # by way and number of pieces


def encode(length: int, query: int, pieces: int, *, prefix: int = 0, restart: bool = True) -> Encoding:
    """Return how a context is encoded in pieces of near equal size, and the query, its last tokens, after them.

    length: tokens of the window, of which the last `query` are the query and the first `prefix` a prefix of all pieces.
    A token of the context sees its piece and the prefix, whose tokens see themselves alone; the query sees everything.
    restart: the places of each piece begin after the prefix, those of the query after the longest piece.
    """
    context = length - query - prefix
    inner = torch.arange(context) * pieces // context
    group = torch.cat([torch.zeros(prefix).long(), inner + 1, torch.full((query,), pieces + 1)])
    seen = (group[:, None] == group) | (group == 0) | (group[:, None] > pieces)
    place = torch.arange(length)
    if restart:
        begins = torch.searchsorted(inner, torch.arange(pieces))
        place[prefix:] -= torch.cat([begins[inner], torch.full((query,), context - int(inner.bincount().max()))])
    return Encoding(group, seen, place)


def keep(encoding: Encoding, kept: Tensor) -> Encoding:
    """Hide from the query all pieces but those in `kept`, which are counted from 0."""
    group, query = encoding.group, encoding.group[-1]
    hidden = (group > 0) & (group < query) & ~torch.isin(group, kept + 1)
    return encoding._replace(seen=encoding.seen & ~((group == query)[:, None] & hidden))


def masses(attention: Tensor, encoding: Encoding) -> Tensor:
    """Return the attention, (..., T) by key, that each group gets, (..., pieces + 2)."""
    return attention @ nn.functional.one_hot(encoding.group).to(attention.dtype)


@torch.no_grad()
def _read(network: Any, window: Tensor, query: int, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """Return the query's attention, (layers, heads, query − 1, T), and last states without [SEP].

    What the query does not see it does not depend on either, so that the network does not read it.
    """
    seen, place = encoding.seen, encoding.place
    read = seen[-1].nonzero().flatten()
    bias = torch.zeros(len(read), len(read)).masked_fill(~seen[read][:, read], torch.finfo(torch.float32).min)
    out = network(
        input_ids=window[read][None],
        attention_mask=bias[None, None],
        position_ids=place[read][None],
        output_attentions=True,
    )
    paid = torch.cat([layer[..., -query:-1, :] for layer in out.attentions])
    attention = paid.new_zeros(*paid.shape[:-1], len(window)).index_copy_(-1, read, paid)
    return attention, out.last_hidden_state[0, -query:-1]


def encoded_contexts(
    folder: Path, windows: Sequence[Tensor], counts: Sequence[int], *, query: int, prefix: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run a MiniLM on windows of text whose context is encoded as a whole and in each number of pieces, in all WAYS.

    Parameters
    ----------
    folder, windows: the model's, and token numbers (T,) each, [CLS] and [SEP] at their ends.
    counts: numbers of pieces.
    query: tokens at the end, with [SEP], which is not measured.
    prefix: tokens of the sink, with [CLS].
    seed: of the random halves.

    Returns
    -------
    A row a window, way and number of pieces: entropy of the query tokens' attention, nats, mean over layers, heads and
    tokens; between and between_whole, that of its sums over the pieces, now and under the whole context; disagreement,
    ‖h − h_whole‖ of the query's last hidden states over that without a context. And a row a head: layer, head, rise of
    its entropy at the greatest number.
    """
    network, generator = minilm_network(folder), torch.Generator().manual_seed(seed)
    rows, rises = [], []
    for number, window in enumerate(windows):
        size = len(window)
        bare = keep(encode(size, query, 1, prefix=1, restart=False), torch.tensor([]))  # [CLS] and the query
        ways: Ways = {("whole", 1): encode(size, query, 1)}
        for count in counts:
            ways["pieces", count] = encode(size, query, count)
            ways["places kept", count] = encode(size, query, count, restart=False)
            ways["sink", count] = encode(size, query, count, prefix=prefix)
        runs = {name: _read(network, window, query, encoding) for name, encoding in ways.items()}
        for count in counts:
            cut = ways["pieces", count]
            paid = masses(runs["pieces", count][0], cut)[..., 1:-1].flatten(0, -2).mean(0)  # (pieces,)
            ways["best half", count] = keep(cut, paid.topk(count // 2).indices)
            ways["random half", count] = keep(cut, torch.randperm(count, generator=generator)[: count // 2])
        runs |= {name: _read(network, window, query, ways[name]) for name in ways.keys() - runs.keys()}
        _, alone = _read(network, window, query, bare)
        whole, states = runs["whole", 1]
        for (way, count), cut in ways.items():
            own, now = runs[way, count]
            entropies = (own, masses(own, cut), masses(whole, cut))
            values = [float(attention_entropy(attention).mean()) for attention in entropies]
            values.append(float((now - states).norm() / (alone - states).norm()))
            rows.append((number, way, count, *values))
        rises.append((attention_entropy(runs["pieces", max(counts)][0]) - attention_entropy(whole)).mean(-1))
    heads = pd.DataFrame(torch.stack(rises).mean(0).numpy()).rename_axis("layer").reset_index()
    columns = ["window", "way", "pieces", "entropy", "between", "between_whole", "disagreement"]
    return pd.DataFrame(rows, columns=columns), heads.melt("layer", var_name="head", value_name="rise")


def _gains(table: pd.DataFrame, column: str, way: str, than: str) -> dict[str, Interval]:
    """Return by "way, p" how much lower a column is than in another way, paired by window; empty for one window."""
    wide = table.pivot(index="window", columns=["way", "pieces"], values=column)
    counts = table.loc[table["way"] == way, "pieces"].unique().tolist() if len(wide) > 1 else []
    other = {count: wide[than, count if than != "whole" else 1] for count in counts}
    return {f"{way}, p = {count}": t_interval(other[count] - wide[way, count]) for count in counts}


def pieces_raise_entropy(tables: Tables) -> Verdict:
    """Judge the rise of entropy over the whole context. Reads `encodings`: window, way, pieces, entropy."""
    falls = _gains(tables["encodings"], "entropy", "pieces", "whole")
    rises = {name: Interval(-fall.estimate, -fall.high, -fall.low) for name, fall in falls.items()}
    return settings_verdict({name: above(rise, 0) for name, rise in rises.items()})


def loss_follows_entropy(tables: Tables) -> Verdict:
    """Judge the correlation, by window, of entropy and disagreement. Reads `encodings` without the halves."""
    rows = tables["encodings"].query("way in ('whole', 'pieces', 'sink')")
    by_window = [group["entropy"].corr(group["disagreement"]) for _, group in rows.groupby("window") if len(group) > 2]
    if len(by_window) < 2:
        return settings_verdict({})
    interval = t_interval(by_window)
    remark = f"correlation {interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})"
    return settings_verdict({"entropy and disagreement": above(interval, 0)}, remark)


def remedies_help(tables: Tables) -> Verdict:
    """Judge each remedy and number of pieces: entropy and disagreement both below those of plain pieces, paired."""
    cases: dict[str, bool | None] = {}
    for way in REMEDIES:
        entropy, disagreement = (
            _gains(tables["encodings"], column, way, "pieces") for column in ("entropy", "disagreement")
        )
        cases |= {name: both(above(entropy[name], 0), above(disagreement[name], 0)) for name in entropy}
    return settings_verdict(cases)


def dispersed_heads_rise(tables: Tables) -> Verdict:
    """Judge the rank correlation of `correlation`: quantity, correlation, low, high."""
    return correlation_verdict(tables["correlation"])


def plot_ways(encodings: pd.DataFrame, column: str, ax: Axes) -> None:
    """Draw a column over the number of pieces, a line for each of WAYS, with 95% t intervals over windows."""
    whole = encodings[encodings["way"] == "whole"].assign(pieces=1)
    for number, way in enumerate(WAYS):
        line = intervals(pd.concat([whole, encodings[encodings["way"] == way]]), ["pieces"], column)
        draw_intervals(ax, line["pieces"], line, fmt="-", marker="osv^D"[number], capsize=2, label=way)
    ticks = sorted({1, *encodings["pieces"]})
    ax.set(xlabel="pieces p", xscale="log", xticks=ticks, xticklabels=[str(tick) for tick in ticks])
    ax.minorticks_off()


SETTING = "MiniLM on one story, contexts of about 115 tokens in up to 16 pieces"
CLAIMS = (
    Claim(
        name="pieces-raise-entropy",
        chapter="parallel_context",
        provenance="literature",
        statement="The attention of tokens that read a context has greater entropy when it was encoded in pieces.",
        rule="For each number of pieces, entropy exceeds that of the whole context: paired 95% t interval above 0.",
        refuted_by="a fall for some number of pieces, and a rise for none",
        tables=("encodings",),
        judge=pieces_raise_entropy,
        figure="fig-parallel-context",
        setting=SETTING,
    ),
    Claim(
        name="loss-follows-entropy",
        chapter="parallel_context",
        provenance="literature",
        statement="The greater the entropy, the more is lost.",
        rule=(
            "Over the whole context, plain pieces and pieces with a sink, the correlation of entropy and disagreement, "
            "one a window, has a 95% t interval above 0."
        ),
        refuted_by="an interval below 0",
        tables=("encodings",),
        judge=loss_follows_entropy,
        figure="fig-parallel-context",
        setting=SETTING,
    ),
    Claim(
        name="sink-and-selection-help",
        chapter="parallel_context",
        provenance="literature",
        statement="A shared sink prefix, and a selection of the pieces, lower entropy and disagreement.",
        rule="For each of the two and each p, both are lower than with plain pieces: paired 95% t intervals by window.",
        refuted_by="one of both being higher in some case, and no case with both lower",
        tables=("encodings",),
        judge=remedies_help,
        figure="fig-parallel-context",
        setting=SETTING,
    ),
    Claim(
        name="dispersed-heads-rise",
        chapter="parallel_context",
        provenance="ours",
        statement="Heads whose W is larger in the covariance of their tokens gain more entropy from pieces.",
        rule=(
            "The rank correlation over heads of the rise and of ‖Σ^½WΣ^½‖_F/λ has a 95% bootstrap interval (layers "
            "resampled whole) above 0."
        ),
        refuted_by="an interval below 0",
        tables=("correlation",),
        judge=dispersed_heads_rise,
        figure="fig-parallel-heads",
        setting="the 72 heads of MiniLM on one story",
    ),
)
