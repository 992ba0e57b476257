"""What takes the attention that nothing needs: value norms under it, and special tokens that change place in MiniLM.

Source: book, "Waiver tokens"; the question is that of arXiv 2407.01601, the measurements are ours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import interval_ends
from qkrepro.evidence.verdicts import above, correlation_verdict, settings_verdict
from qkrepro.models.minilm import minilm_network
from qkrepro.models.transformer import LanguageModel, Layer
from qkrepro.theory.statistics import intervals, t_interval

READS = ("notebooks/texts/walk.txt",)
SOURCE = "2407.01601"
SPECTRUM_SAYS = "A sink needs one direction of W that all queries share; mean and concentration need not show it."
EXCESS = 0.2  # mean share of all attention from which one token counts as taking an excess
TRAINED, MIDDLE_SEP, MIDDLE_CLS, NO_CLS = "as trained", "[SEP] in the middle", "[CLS] in the middle", "[CLS] dropped"


@torch.no_grad()
def head_values(folder: Path, windows: Sequence[Tensor]) -> pd.DataFrame:
    """Return what the tokens that each head of a MiniLM attends to hold as values, one row a window and head.

    rank: Spearman's correlation over tokens of attention received and value norm; received: the mean attention of the
    most attended token; value: its value norm over the median one; special: whether it is [CLS] or [SEP]; share:
    attention paid to these two; carried: the share that they have of Σ attention · value norm.
    """
    network = minilm_network(folder)
    rows: list[dict[str, Any]] = []
    for number, window in enumerate(windows):
        seen = network(input_ids=window[None], output_attentions=True, output_hidden_states=True)
        for layer, block in enumerate(network.encoder.layer):
            received = seen.attentions[layer][0].double().mean(1)  # (heads, T), over queries
            heads, length = received.shape
            values = block.attention.self.value(seen.hidden_states[layer])[0].double()  # (T, heads · d_head)
            norms = values.view(length, heads, -1).norm(dim=-1).mT  # (heads, T)
            place = {"window": number, "layer": layer}
            rows += [place | {"head": head} | _of_head(received[head].numpy(), norms[head]) for head in range(heads)]
    return pd.DataFrame(rows)


def _of_head(received: Any, norms: Tensor) -> dict[str, float | bool]:
    """Return the columns of `head_values` for one head; received, norms: (T,)."""
    value = norms.numpy()
    top, carried = int(received.argmax()), received * value
    return {
        "rank": float(stats.spearmanr(received, value).statistic),
        "received": float(received[top]),
        "value": float(value[top] / np.median(value)),
        "special": top in (0, len(value) - 1),
        "share": float(received[0] + received[-1]),
        "carried": float((carried[0] + carried[-1]) / carried.sum()),
    }


@torch.no_grad()
def own_values(model: LanguageModel, tokens: Tensor) -> pd.DataFrame:
    """Return the same of a causal model of ours on tokens (sequences, T), one row a sequence, layer and head.

    received: mean attention of the most attended of the first T/2 tokens, from the later queries, which see them all;
    first: that of the first token; value: the value norm of the former over the median one.
    """
    rows, half = [], tokens.shape[1] // 2
    for layer, (trace, block) in enumerate(zip(model.trace(tokens), model.layers, strict=True)):
        assert isinstance(block, Layer)
        received = trace.attention[:, :, half:, :half].double().mean(2)  # (sequences, heads, T/2)
        heads = received.shape[1]
        norms = block.attention.value(trace.inputs).double().unflatten(-1, (heads, -1)).norm(dim=-1)[:, :half]
        for sequence, head in np.ndindex(*received.shape[:2]):
            values, top = norms[sequence, :, head], int(received[sequence, head].argmax())
            own = {"received": float(received[sequence, head, top]), "first": float(received[sequence, head, 0])}
            rows.append({"sequence": sequence, "layer": layer} | own | {"value": float(values[top] / values.median())})
    return pd.DataFrame(rows)


def arrangements(window: Tensor) -> dict[str, tuple[Tensor, dict[str, int]]]:
    """Return a window ([CLS], words, [SEP]) in four orders, each with where "[CLS]", "[SEP]", "first", "last" are."""
    cls, words, sep = window[:1], window[1:-1], window[-1:]
    half = len(words) // 2
    left, right, count = words[:half], words[half:], len(words)
    ends = {"first": 0, "last": count + 1}
    return {
        TRAINED: (window, ends | {"[CLS]": 0, "[SEP]": count + 1}),
        MIDDLE_SEP: (torch.cat([cls, left, sep, right]), ends | {"[CLS]": 0, "[SEP]": half + 1}),
        MIDDLE_CLS: (torch.cat([left, cls, right, sep]), ends | {"[CLS]": half, "[SEP]": count + 1}),
        NO_CLS: (torch.cat([words, sep]), {"first": 0, "last": count, "[SEP]": count}),
    }


@torch.no_grad()
def moved_tokens(folder: Path, windows: Sequence[Tensor]) -> pd.DataFrame:
    """Return window, order, place, received: attention over uniform attention, mean over layers, heads and queries."""
    network = minilm_network(folder)
    rows = []
    for number, window in enumerate(windows):
        for order, (tokens, places) in arrangements(window).items():
            attention = torch.cat(network(input_ids=tokens[None], output_attentions=True).attentions)
            received = attention.double().mean((0, 1, 2)) * len(tokens)  # (T,), of mean 1
            rows += [(number, order, place, float(received[at])) for place, at in places.items()]
    return pd.DataFrame(rows, columns=["window", "order", "place", "received"])


def excess_has_little_value(tables: Tables, excess: float = EXCESS) -> Verdict:
    """Judge log `value` of tokens with an excess in `values` (window, layer, received, value), layer by layer."""
    taken = tables["values"].query("received > @excess")
    means = taken.assign(less=-np.log(taken["value"])).groupby(["layer", "window"])["less"].mean().reset_index()
    return _by_layer(means, "less")


def attention_avoids_value(tables: Tables) -> Verdict:
    """Judge the rank correlations in `values` (window, layer, head, rank), layer by layer."""
    means = tables["values"].groupby(["layer", "window"])["rank"].mean().reset_index()
    return _by_layer(means.assign(less=-means["rank"]), "less")


def _by_layer(means: pd.DataFrame, column: str) -> Verdict:
    """Judge whether a column is above 0, by its t interval over windows, in every layer that has two windows."""
    layers = {f"layer {layer}": group[column] for layer, group in means.groupby("layer") if len(group) > 1}
    return settings_verdict({name: above(t_interval(values), 0) for name, values in layers.items()})


def chosen_by_feature(tables: Tables) -> Verdict:
    """Judge `moved` (window, order, place, received): the token against the place that it left, by window."""
    moved = tables["moved"]
    wide = moved.pivot(index="window", columns=["order", "place"], values="received")
    if len(wide) < 2:
        return settings_verdict({})
    pairs = {
        MIDDLE_SEP: wide[MIDDLE_SEP, "[SEP]"] - wide[MIDDLE_SEP, "last"],
        MIDDLE_CLS: wide[MIDDLE_CLS, "[CLS]"] - wide[MIDDLE_CLS, "first"],
        NO_CLS: wide[TRAINED, "first"] / 2 - wide[NO_CLS, "first"],
    }
    return settings_verdict({order: above(t_interval(gap), 0) for order, gap in pairs.items()})


def trace_keeps_from_sinks(tables: Tables) -> Verdict:
    """Judge the rank correlation of `correlation`: quantity, low, high; it holds below 0."""
    return correlation_verdict(tables["correlation"], -1)


def plot_values(values: pd.DataFrame, ax: Axes, excess: float = EXCESS) -> None:
    """Draw the value norm of each head's most attended token over the attention that it receives, a point a head."""
    means = values.groupby(["layer", "head"], as_index=False)[["received", "value", "special"]].mean()
    for special, marker, label in ((True, "o", "[CLS] or [SEP]"), (False, "x", "a word")):
        chosen = means[(means["special"] > 0.5) == special]
        ax.scatter(chosen["received"], chosen["value"], marker=marker, s=20, label=label)
    ax.axhline(1, color="0.6", linewidth=0.8)
    ax.axvline(excess, color="0.6", linewidth=0.8, linestyle=":")
    ax.set(xlabel="attention received by the most attended token", ylabel="its value norm / median", yscale="log")
    ax.legend()


def plot_moved(moved: pd.DataFrame, ax: Axes) -> None:
    """Draw the attention that [CLS], [SEP] and the first and last place receive in each order, with intervals."""
    summary = intervals(moved, ["order", "place"], "received")
    orders = [TRAINED, MIDDLE_SEP, MIDDLE_CLS, NO_CLS]
    for number, place in enumerate(("[CLS]", "[SEP]", "first", "last")):
        line = summary[summary["place"] == place]
        at = [orders.index(order) + 0.2 * (number - 1.5) for order in line["order"]]
        label = place if place.startswith("[") else f"{place} place"
        ax.bar(at, line["estimate"], width=0.19, yerr=interval_ends(line), capsize=2, label=label)
    ax.axhline(1, color="0.4", linestyle=":", linewidth=1)
    ax.set_xticks(
        range(len(orders)), [order.replace(" in", "\nin").replace(" dropped", "\ndropped") for order in orders]
    )
    ax.set(ylabel="attention received × T", ylim=(0, 1.35 * summary["high"].max()))
    ax.legend(fontsize="small", ncols=4, loc="upper center")


SETTING = "MiniLM on one story"
CLAIMS = (
    Claim(
        name="excess-has-little-value",
        chapter="waiver_tokens",
        provenance="literature",
        statement="A token that takes an excess of attention carries little value: excess is paid where it adds least.",
        rule=(
            "In each layer, over the heads in which one token receives more than 0.2 of all attention, its value norm "
            "is below the median one: 95% t interval of the mean log ratio over windows."
        ),
        refuted_by="value norms above the median",
        tables=("values",),
        judge=excess_has_little_value,
        figure="fig-waiver-values",
        threshold=Threshold("attention received", EXCESS, (0.05, 0.1, 0.2, 0.3, 0.5), excess_has_little_value),
        setting=SETTING,
    ),
    Claim(
        name="attention-avoids-value",
        chapter="waiver_tokens",
        provenance="literature",
        statement="Over all tokens of a text, those that receive more attention have the smaller values.",
        rule="In each layer the rank correlation, mean over heads, is below 0: 95% t interval over windows.",
        refuted_by="correlations above 0",
        tables=("values",),
        judge=attention_avoids_value,
        figure="fig-waiver-values",
        setting=SETTING,
    ),
    Claim(
        name="waivers-are-chosen-by-feature",
        chapter="waiver_tokens",
        provenance="literature",
        statement="What takes the excess is chosen by what the token is, not by where it stands.",
        rule=(
            "[SEP] and [CLS], each moved to the middle, receive more than the place they left; without [CLS] the first "
            "place receives less than half of what it did. Paired 95% t intervals over windows."
        ),
        refuted_by="a place that keeps its attention whatever stands there",
        tables=("moved",),
        judge=chosen_by_feature,
        figure="fig-waiver-moved",
        setting=SETTING,
    ),
    Claim(
        name="trace-keeps-from-sinks",
        chapter="waiver_tokens",
        provenance="ours",
        statement="Heads whose W has the greater trace in the covariance of their tokens pay less to [CLS] and [SEP].",
        rule="The rank correlation over heads has a 95% bootstrap interval (layers resampled whole) below 0.",
        refuted_by="an interval above 0",
        tables=("correlation",),
        judge=trace_keeps_from_sinks,
        setting="the 72 heads of MiniLM on one story",
    ),
)
