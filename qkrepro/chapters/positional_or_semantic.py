"""Positional or semantic attention: the mean-field theory of a solvable layer, and gradient descent beside it.

The layer reads two tokens x_1 = p + w_1, x_2 = −p + w_2, w Gaussian of variance σ², p = 1/√d: softmax(x QQᵀxᵀ/d) x with
tied queries and keys of rank one. The target mixes (1 − ω) softmax(w Q*Q*ᵀwᵀ/d) w, which depends on meaning, with
ω A w, which depends on position. As d grows, with n = αd samples, all follows from m = 1·Q/d, θ = σ²Q*·Q/d and
q = σ²‖Q‖²/d. `python -m qkrepro.chapters.positional_or_semantic results/positional-or-semantic` makes the records.
Source: arXiv 2402.03902 (model and setting); the equations and the code are ours.
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import root
from scipy.stats import norm, qmc
from torch import Tensor

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.verdicts import above, both, settings_verdict, share_verdict, within
from qkrepro.files import write_atomically
from qkrepro.theory.statistics import t_interval

SOURCE = "2402.03902"
SPECTRUM_SAYS = (
    "The one eigenvalue of the learnt W differs between the mechanisms, its eigenvector names the mechanism."
)
READS: tuple[str, ...] = ("results/positional-or-semantic/*",)
NOISE, DECAY, STAYING = 0.5, 0.01, 0.6  # σ, λ, and the diagonal of A, whose rows sum to one
MECHANISMS = ("positional", "semantic")
GRID = {0.3: (0.6, 0.7, 0.8, 0.9, 1.2, 1.3, 1.5, 2.0), 0.5: (1.0, 1.2, 1.3, 1.5, 2.0)}  # α of the theory, by ω
DESCENTS = ((0.3, (0.6, 1.0, 1.3, 2.0)), (0.5, (1.0, 1.6)))  # α of gradient descent, by ω
OPPOSITE = torch.tensor([1.0, -1.0], dtype=torch.float64)  # the sign of p in each token


PUBLISHED = {
    "free energies cross, ω = 0.3": 1.262,
    "test errors cross, ω = 0.3": 0.770,
    "test errors cross, ω = 0.5": 1.276,
    "semantic θ, α = 2": 0.1586,
    "semantic error, α = 2": 0.002793,
    "positional m, α = 2": 0.2586,
    "positional error, α = 2": 0.006981,
    "descent: positional m, α = 2": 0.2618,
}
TOLERANCE = 0.03  # of a published number, for its digits and for two ways to integrate numerically


def staying(h: Tensor) -> Tensor:
    """Return the diagonal of softmax(h hᵀ), (..., 2), of h (..., 2): the weight of each token on itself."""
    gap = h[..., :1] - h[..., 1:]
    return torch.sigmoid(h * gap * OPPOSITE)


class Samples(NamedTuple):
    """Quasi-random Gaussian pairs of the teacher, z, and of the rest, rest, (n, 2), with the target's diagonal."""

    z: Tensor
    rest: Tensor
    target: Tensor


def draw_samples(weight: float, points: int, seed: int) -> Samples:
    """Return scrambled Sobol points of the four Gaussians; weight: ω of the target. points: a power of two."""
    uniform = qmc.Sobol(4, rng=seed).random(points).clip(1e-12, 1 - 1e-12)
    normal = torch.from_numpy(norm.ppf(uniform))
    z, rest = normal[:, :2], normal[:, 2:]
    return Samples(z, rest, (1 - weight) * staying(NOISE * z) + weight * STAYING)


def proximal(centre: Tensor, target: Tensor, stiffness: float, start: Tensor) -> tuple[Tensor, Tensor]:
    """Descend by Newton's method from `start` to a minimum of loss(h) + stiffness ‖h − centre‖²/2; (n, 2) and its (n,).

    loss(h) = σ²‖diag softmax(hhᵀ) − target‖², half the squared error of the output over d.
    """
    h, scale = start.clone(), 2 * NOISE**2
    curvature = torch.tensor([[[2.0, -1.0], [-1.0, 0.0]], [[0.0, -1.0], [-1.0, 2.0]]], dtype=torch.float64)
    for _ in range(30):
        own = staying(h)
        slope, miss = own * (1 - own), own - target
        first = (h @ curvature).transpose(0, 1)  # (n, 2, 2), gradient of each logit h_l(h_l − h_k)
        pull = (scale * (miss * slope))[..., None, None]
        bend = (scale * (slope**2 + miss * slope * (1 - 2 * own)))[..., None, None]
        gradient = (pull[..., 0] * first).sum(1) + stiffness * (h - centre)
        hessian = (pull * curvature + bend * first[..., :, None] * first[..., None, :]).sum(1)
        a, b, c = hessian[:, 0, 0] + stiffness, hessian[:, 0, 1], hessian[:, 1, 1] + stiffness
        least = (a + c) / 2 - (((a - c) / 2) ** 2 + b**2).sqrt()  # the smaller eigenvalue, lifted where it is too small
        lift = (0.2 * stiffness - least).clamp(min=0)
        a, c = a + lift, c + lift
        step = torch.stack([c, -b, -b, a], -1).reshape(-1, 2, 2) @ gradient[..., None]
        step = (step / (a * c - b**2)[:, None, None])[..., 0]
        h = h - step * (0.5 / step.norm(dim=-1, keepdim=True)).clamp(max=1)
        if float(step.abs().max()) < 1e-8:
            break
    return h, NOISE**2 * (staying(h) - target).square().sum(-1) + stiffness * (h - centre).square().sum(-1) / 2


def envelope(centre: Tensor, target: Tensor, stiffness: float) -> Tensor:
    """Return the minimiser, (n, 2), of what `proximal` descends: the deepest of those that six starts lead to."""
    best, value = proximal(centre, target, stiffness, centre)
    corners = [(0.5, -0.5), (-0.5, 0.5), (0.6, 0.6), (-0.6, -0.6)]
    starts = [torch.tensor(corner, dtype=torch.float64).expand_as(centre) for corner in corners]
    for start in [2 * centre, *starts]:
        found, depth = proximal(centre, target, stiffness, start)
        deeper = depth < value - 1e-12
        best, value = torch.where(deeper[:, None], found, best), torch.minimum(value, depth)
    return best


def state_update(state: Sequence[float], alpha: float, samples: Samples) -> tuple[Any, Tensor, Tensor]:
    """Return the next (m, θ, q, V) of the saddle-point equations, with h before and after the update, (n, 2) each.

    θ and q without σ². With g = (h* − h)/(σ²V): m̂ = αE[g·e], θ̂ = αE[g·∂_θh], q̂ = ασ²E‖g‖², V̂ = −αE[g·σξ]/√(q−θ²),
    and m = m̂V, θ = θ̂V, q = V²(q̂ + θ̂² + m̂²), V = 1/(λ + V̂).
    """
    m, theta, q, response = state
    width = math.sqrt(max(q - theta**2, 1e-9))
    before = m * OPPOSITE + NOISE * (theta * samples.z + width * samples.rest)
    after = envelope(before, samples.target, 1 / (NOISE**2 * response))
    g = (after - before) / (NOISE**2 * response)
    turned = NOISE * (samples.z - theta / width * samples.rest)
    m_hat, theta_hat = (alpha * (g * toward).sum(-1).mean().item() for toward in (OPPOSITE, turned))
    q_hat = alpha * NOISE**2 * g.square().sum(-1).mean().item()
    v = 1 / (DECAY - alpha * NOISE * (g * samples.rest).sum(-1).mean().item() / width)
    return (m_hat * v, theta_hat * v, v**2 * (q_hat + theta_hat**2 + m_hat**2), v), before, after


def fixed_point(
    alpha: float, samples: Samples, mechanism: str, start: Sequence[float] = (), *, everywhere: bool = True
) -> dict[str, Any]:
    """Return m, theta, q, response, energy (train loss over d), error and whether the solver converged, on one branch.

    start: (m or θ, q, V) to begin from. error: squared error over d, twice the loss, as the source counts it.
    """
    place = MECHANISMS.index(mechanism)
    begin = start or ((0.257, 0.2, 45.0) if place == 0 else (0.63, 0.45, 50.0))

    def state(x: Any) -> list[float]:
        return [x[0] * (place == 0), x[0] * (place == 1), abs(x[1]), 100 * abs(x[2])]

    def residual(x: Any) -> list[float]:
        new, _, _ = state_update(state(x), alpha, samples)
        return [new[place] - x[0], new[2] - x[1], new[3] / 100 - x[2]]

    solved = root(residual, [begin[0], begin[1], begin[2] / 100], options={"xtol": 1e-5})
    m, theta, q, response = state(solved.x)
    _, before, after = state_update([m, theta, q, response], alpha, samples)
    train, test = (NOISE**2 * (staying(h) - samples.target).square().sum(-1).mean().item() for h in (after, before))
    order = {"m": m, "theta": NOISE**2 * theta, "q": NOISE**2 * q, "response": response}
    closed = {"energy": alpha * train + DECAY / 2 * q, "error": 2 * test, "converged": bool(solved.success)}
    return {"alpha": alpha, "mechanism": mechanism} | order | closed


def theory_table(weight: float, *, points: int, seed: int) -> pd.DataFrame:
    """Return the fixed points of both branches at every α of GRID, each begun from the one before, downwards."""
    samples, rows = draw_samples(weight, points, seed), []
    for mechanism in MECHANISMS:
        start: Sequence[float] = ()
        for alpha in sorted(GRID[weight], reverse=True):
            row = fixed_point(alpha, samples, mechanism, start)
            start = (row["m"] + row["theta"] / NOISE**2, row["q"] / NOISE**2, row["response"])
            rows.append(row | {"weight": weight, "seed": seed})
    return pd.DataFrame(rows)


def descend(alpha: float, weight: float, *, dim: int, steps: int, seed: int, rate: float = 0.15) -> pd.DataFrame:
    """Train Q by gradient descent from 1 (positional) and from Q* (semantic) on the same αd samples; one row a start.

    Columns as `fixed_point`, and linear: the error of the best linear map of positions, fitted to the same samples.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    teacher, position = draw(dim), torch.ones(dim, dtype=torch.float64)
    mixing = torch.tensor([[STAYING, 1 - STAYING], [1 - STAYING, STAYING]], dtype=torch.float64)

    def data(count: int) -> tuple[Tensor, ...]:
        noise = NOISE * draw(count, 2, dim)
        x, z = noise + OPPOSITE[:, None] / dim**0.5, noise @ teacher / dim**0.5  # ‖p‖ = 1
        mixed = (1 - weight) * torch.softmax(z[:, :, None] * z[:, None], -1) + weight * mixing
        y = mixed @ noise
        products = [(a @ b.mT) / dim for a, b in ((x, x), (x, y), (y, y), (noise, noise), (y, noise))]
        return x.reshape(-1, dim) / dim**0.5, *products

    def losses(h: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:  # h: (n, 2, starts)
        a = torch.softmax(torch.einsum("nls,nks->snlk", h, h), -1)
        return ((a @ xx * a) - 2 * a * xy.mT + torch.diag_embed(yy.diagonal(dim1=1, dim2=2))).sum((2, 3)) / 2

    x, xx, xy, yy, noises, cross = data(round(alpha * dim))
    q, short = torch.stack([position, teacher], dim=1).float(), [part.float() for part in (x, xx, xy, yy)]
    for _ in range(steps):  # in single precision, which halves the traffic; everything is measured in double
        h = (short[0] @ q).reshape(-1, 2, 2).requires_grad_()  # (n, 2, starts)
        (slope,) = torch.autograd.grad(losses(h, *short[1:]).sum(), h)
        q = q - rate * (short[0].T @ slope.reshape(-1, 2) + DECAY * q)
    q = q.double()
    train = losses((x @ q).reshape(-1, 2, 2), xx, xy, yy).sum(1) / dim
    linear = torch.linalg.solve(noises.sum(0), cross.sum(0).mT).mT
    x, xx, xy, yy, noises, cross = data(4000)
    test = losses((x @ q).reshape(-1, 2, 2), xx, xy, yy).mean(1)
    missed = (linear @ noises * linear - 2 * linear * cross).sum((1, 2)) + yy.diagonal(dim1=1, dim2=2).sum(1)
    size = q.square().sum(0) / dim
    columns = {"m": position @ q / dim, "theta": NOISE**2 * (teacher @ q) / dim, "q": NOISE**2 * size}
    columns |= {"energy": train + DECAY / 2 * size, "error": 2 * test, "linear": missed.mean().expand(2)}
    same = {"mechanism": MECHANISMS, "alpha": alpha, "weight": weight, "seed": seed, "dim": dim, "steps": steps}
    return pd.DataFrame({**same, **{name: values.numpy() for name, values in columns.items()}})


def record(folder: Path, *, seeds: int = 2, points: int = 4096, dim: int = 1000, steps: int = 5000) -> None:
    """Write theory-*.csv and descent-*.csv into the folder, one file a setting and seed; files that exist are kept."""
    work: dict[str, partial[pd.DataFrame]] = {}
    for seed, weight in product(range(seeds), GRID):
        work[f"theory-{weight}-{seed}"] = partial(theory_table, weight, points=points, seed=seed)
    for seed, (weight, alphas) in product(range(seeds), DESCENTS):
        for alpha in sorted(alphas, reverse=True):
            work[f"descent-{weight}-{alpha}-{seed}"] = partial(descend, alpha, weight, dim=dim, steps=steps, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, compute in work.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            write_atomically(path, compute().to_csv(index=False, float_format="%.6g").encode())


def read(folder: Path, kind: str) -> pd.DataFrame:
    """Return the rows of all records of a kind, "theory" or "descent"."""
    return pd.concat([pd.read_csv(path) for path in sorted(folder.glob(f"{kind}-*.csv"))], ignore_index=True)


def crossing(branches: pd.DataFrame, column: str) -> float:
    """Return the largest α at which a column of both mechanisms is equal, by linear interpolation; NaN without one."""
    wide = branches.pivot(index="alpha", columns="mechanism", values=column).sort_index()
    alpha, gap = wide.index.to_numpy(), (wide["positional"] - wide["semantic"]).to_numpy()
    places = np.flatnonzero(gap[:-1] * gap[1:] < 0)[-1:]
    found = [alpha[k] + (alpha[k + 1] - alpha[k]) * gap[k] / (gap[k] - gap[k + 1]) for k in places]
    return float(found[0]) if found else float("nan")


def comparison(theory: pd.DataFrame, descents: pd.DataFrame) -> pd.DataFrame:
    """Return our values of what is in PUBLISHED: quantity, estimate, low, high (extremes over seeds), published."""
    rows: list[tuple[str, float]] = []
    for _, group in theory.groupby("seed"):
        for name, weight, column in zip(
            list(PUBLISHED)[:3], (0.3, 0.3, 0.5), ("energy", "error", "error"), strict=True
        ):
            rows.append((name, crossing(group[group["weight"] == weight], column)))
        at = group[(group["weight"] == 0.3) & (group["alpha"] == 2.0)].set_index("mechanism")
        rows += [
            ("semantic θ, α = 2", abs(at["theta"]["semantic"])),
            ("positional m, α = 2", abs(at["m"]["positional"])),
        ]
        rows += [(f"{mechanism} error, α = 2", at["error"][mechanism]) for mechanism in MECHANISMS]
    last = descents[(descents["weight"] == 0.3) & (descents["alpha"] == 2.0) & (descents["mechanism"] == "positional")]
    rows += [("descent: positional m, α = 2", abs(value)) for value in last["m"]]
    values = pd.DataFrame(rows, columns=["quantity", "value"]).groupby("quantity", sort=False)["value"]
    table = values.agg(estimate="mean", low="min", high="max").reset_index()
    return table.assign(published=[PUBLISHED[str(name)] for name in table["quantity"]])


def agrees_with_published(tables: Tables, tolerance: float = TOLERANCE) -> Verdict:
    """Table comparison: quantity, low, high, published."""
    rows = tables["comparison"].dropna().to_dict("records")
    ends = [(row["published"] * (1 - tolerance), row["published"] * (1 + tolerance)) for row in rows]
    return settings_verdict(
        {row["quantity"]: within(row["low"], row["high"], *end) for row, end in zip(rows, ends, strict=True)}
    )


def mechanism_changes(tables: Tables) -> Verdict:
    """Table descents: weight, alpha, mechanism, seed, energy; ω = 0.3. Each seed is a case.

    The claim needs the positional minimum to be deeper at the least α and the semantic one at the greatest.
    """
    table = tables["descents"][lambda rows: rows["weight"] == 0.3]
    wide = table.pivot(index=["seed", "alpha"], columns="mechanism", values="energy").sort_index()
    gaps = (wide["semantic"] - wide["positional"]).groupby(level="seed")
    cases = [bool(gap.iloc[0] > 0 > gap.iloc[-1]) for _, gap in gaps if len(gap) > 1]
    return share_verdict(
        cases, f"the deeper minimum changes from positional to semantic in {sum(cases)} of {len(cases)}"
    )


def spectrum_names_mechanism(tables: Tables) -> Verdict:
    """Table descents: weight, alpha, mechanism, seed, m, theta, q, at α of 1 and more, where both minima are there.

    cos² of the eigenvector with the position is m²σ²/q, with the teacher θ²/(σ²q).
    """
    table = tables["descents"][lambda rows: rows["alpha"] >= 1]
    position = NOISE**2 * table["m"] ** 2 / table["q"]
    teacher = table["theta"] ** 2 / (NOISE**2 * table["q"])
    turned = ((teacher > position) == (table["mechanism"] == "semantic")).groupby([table["weight"], table["alpha"]])
    sizes = table.pivot(index=["weight", "alpha", "seed"], columns="mechanism", values="q")
    log_ratio = np.log(sizes["semantic"] / sizes["positional"]).groupby(level=["weight", "alpha"])
    larger = {key: t_interval(group.to_numpy()) for key, group in log_ratio if len(group) > 1}
    cases = {}
    for key, named in turned:
        if key in larger:
            cases["ω = {}, α = {}".format(*key)] = both(bool(named.all()), above(larger[key], 0))
    return settings_verdict(cases)


SETTING = "the mean-field theory solved by us and descents of dimension 1,000"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="positional-or-semantic-numbers",
        chapter="positional_or_semantic",
        provenance="literature",
        statement="The layer's published crossings, order parameters and errors are those of its mean-field theory.",
        rule="Each number, over seeds of the integration or of the data, lies within 3% of the published one.",
        refuted_by="numbers of which some lie outside and none within",
        tables=("comparison",),
        judge=agrees_with_published,
        figure="fig-positional-or-semantic",
        threshold=Threshold("share of the published number", TOLERANCE, (0.01, 0.03, 0.1, 0.2), agrees_with_published),
        setting=SETTING,
    ),
    Claim(
        name="samples-make-semantic",
        chapter="positional_or_semantic",
        provenance="literature",
        statement="With few samples the positional minimum is the deeper one, with many the semantic one.",
        rule="For each seed, train loss from the positional start is the lower at the least α, the higher at the most.",
        refuted_by="holding for no seed",
        tables=("descents",),
        judge=mechanism_changes,
        figure="fig-positional-or-semantic",
        setting="descents of dimension 1,000, ω = 0.3, α from 0.6 to 2",
    ),
    Claim(
        name="eigenvector-names-mechanism",
        chapter="positional_or_semantic",
        provenance="ours",
        statement="The learnt W's eigenvector names its mechanism, and its eigenvalue is larger where it is semantic.",
        rule=(
            "For each ω and α of at least 1: the eigenvector lies closer to what its start named, for all seeds, and "
            "the log ratio of the eigenvalues is above 0 by its t interval over seeds."
        ),
        refuted_by="failing in some cases and holding in none",
        tables=("descents",),
        judge=spectrum_names_mechanism,
        figure="fig-positional-spectrum",
        setting="descents of dimension 1,000",
    ),
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    record(Path(sys.argv[1]))
