"""Irrelevant features in control: a policy that attends to features, an MLP, and a sum of features without attention.

A mass on a line is to stop at a goal. The policies imitate a linear-quadratic controller and are tested with more
features than matter. Source: book, "Agents"; the question is that of arXiv 2007.04862, the task is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_are
from torch import Generator, Tensor, nn

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.verdicts import above, settings_verdict
from qkrepro.theory.statistics import t_interval
from qkrepro.training.side_by_side import Heads, matrices, minimise

READS: tuple[str, ...] = ()
SOURCE = "2007.04862"
SPECTRUM_SAYS = "Learning to ignore enlarges W_QK but not its mean: the spectrum spreads and does not concentrate."
ATTENTION, MLP, SUM = "attention", "MLP", "sum"
RELEVANT = 3  # position, velocity, goal; features from there on are irrelevant
NAME = 14  # dimensions of a feature's name; its value and a constant make a token of 16
WIDTHS = {ATTENTION: 8, MLP: 30, SUM: 40}  # hidden units, for about as many weights each
PLAIN, PENALISED = "plain", "penalised"
GAIN = 0.02  # score from which a policy counts as the better one: 2% of what the controller gains
TIME_STEP, EFFORT = 0.2, 0.1  # seconds; cost of speed and force beside that of the distance
Observation = NDArray[np.float64]
Task = tuple[int, int | None]
Info = dict[str, Any]


class Reach(gymnasium.Env[Observation, Observation]):
    """A mass of one on a line, pushed by a force in [-1, 1], is to stop at a goal; it starts anywhere, at rest.

    Observes position, velocity, goal, and as many irrelevant features, autoregressive of unit variance.
    """

    def __init__(self, irrelevant: int, steps: int = 30) -> None:
        """Set the number of irrelevant features and of steps in an episode."""
        self.irrelevant, self.steps = irrelevant, steps
        self.observation_space = Box(-np.inf, np.inf, (RELEVANT + irrelevant,), np.float64)
        self.action_space = Box(-1.0, 1.0, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Draw position, goal and irrelevant features from the normal law."""
        super().reset(seed=seed, options=options)
        self.seen = self.np_random.standard_normal(RELEVANT + self.irrelevant)
        self.seen[1], self.left = 0.0, self.steps
        return self.seen.copy(), {}

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, Info]:
        """Push for a moment; the reward is minus the cost, (x − g)² + 0.1 v² + 0.1 u²."""
        position, velocity, goal = self.seen[:RELEVANT]
        force = min(max(float(action[0]), -1.0), 1.0)
        reward = -((position - goal) ** 2 + EFFORT * velocity**2 + EFFORT * force**2)
        self.seen[0], self.seen[1] = position + TIME_STEP * velocity, velocity + TIME_STEP * force
        fresh = self.np_random.standard_normal(self.irrelevant)
        self.seen[RELEVANT:] = 0.8 * self.seen[RELEVANT:] + 0.6 * fresh
        self.left -= 1
        return self.seen.copy(), float(reward), False, self.left <= 0, {}


@cache
def gains() -> tuple[float, float]:
    """Return how strongly the linear-quadratic controller answers a distance and a velocity."""
    moves, push = np.array([[1.0, TIME_STEP], [0.0, 1.0]]), np.array([[0.0], [TIME_STEP]])
    costs = solve_discrete_are(moves, push, np.diag([1.0, EFFORT]), np.array([[EFFORT]]))
    near, fast = np.linalg.solve(EFFORT + push.T @ costs @ push, push.T @ costs @ moves)[0]
    return float(near), float(fast)


def controller(observation: Tensor) -> Tensor:
    """Return the force of the controller, clipped to ±1, for observations (..., features)."""
    near, fast = gains()
    position, velocity, goal = observation[..., :RELEVANT].unbind(-1)
    return torch.clamp(near * (goal - position) - fast * velocity, -1, 1)


class Policy(nn.Module):
    """A policy for each run with one hidden layer: of the features in their places, or of their sum by name.

    names: (runs, features, NAME). A sum weighs a feature by one, or by the self-attention it receives on the mean.
    """

    def __init__(self, kind: str, names: Tensor, generator: Generator) -> None:
        """Draw the weights."""
        super().__init__()
        runs, features, dim = names.shape
        self.names = names
        self.heads = Heads(runs, dim + 2, dim + 2, generator) if kind == ATTENTION else None
        for parameter in self.heads.parameters() if self.heads else ():
            parameter.data *= 0.5  # from twice that on, some runs did not learn
        self.by_name = kind != MLP
        self.w_in = matrices(runs, WIDTHS[kind], dim if self.by_name else features, generator)
        self.bias = nn.Parameter(torch.zeros(runs, 1, WIDTHS[kind], dtype=torch.float64))
        self.w_out = matrices(runs, 1, WIDTHS[kind], generator)

    def tokens(self, observation: Tensor) -> Tensor:
        """Return a token for each feature, its name, value and a one: (runs, batch, features, NAME + 2)."""
        names = self.names[:, None, : observation.shape[-1]].expand(*observation.shape, -1)
        return torch.cat([names, observation[..., None], torch.ones_like(observation)[..., None]], dim=-1)

    def weights(self, observation: Tensor) -> Tensor:
        """Return the weight of each feature, (runs, batch, features)."""
        if self.heads is None:
            return torch.ones_like(observation)
        tokens = self.tokens(observation)
        return torch.softmax(self.heads(tokens, tokens), dim=-1).mean(-2)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the force, (runs, batch); observation: (runs, batch, features), the first of all features."""
        names = self.names[:, : observation.shape[-1]]
        inputs = (self.weights(observation) * observation) @ names if self.by_name else observation
        hidden = inputs @ self.w_in[..., : inputs.shape[-1]].mT
        force: Tensor = (torch.tanh(hidden + self.bias) @ self.w_out.mT)[..., 0]
        return force


def train(kind: str, task: Task, penalties: Tensor, *, features: int, batch: int, steps: int, rate: float) -> Policy:
    """Return policies that imitated the controller, one for each of the penalties on the squares of its weights.

    kind: attention, MLP or sum. task: how many irrelevant features there are, and how many states, None for new ones at
    every step, all of unit variance. features: how many there are names for. batch: states a step and run. steps, rate:
    of Adam. A run has equal names and states whatever the kind.
    """
    generator = torch.Generator().manual_seed(0)
    runs = len(penalties)
    names = torch.randn(runs, features, NAME, generator=generator, dtype=torch.float64)
    policy = Policy(kind, names, torch.Generator().manual_seed(1))

    def states(count: int) -> Tensor:
        return torch.randn(runs, count, RELEVANT + task[0], generator=generator, dtype=torch.float64)

    few = states(task[1]) if task[1] else None

    def loss() -> Tensor:
        seen = states(batch) if few is None else few[:, torch.randperm(few.shape[1], generator=generator)[:batch]]
        error = (policy(seen) - controller(seen)).square().mean(-1)
        squares = torch.stack([weight.square().sum((-2, -1)) for weight in policy.parameters()]).sum(0)
        return torch.sum(error + penalties * squares)

    minimise(policy.parameters(), loss, steps=steps, rate=rate)
    return policy


def episode_costs(act: Callable[[Tensor], Tensor], runs: int, irrelevant: int, episodes: int) -> Observation:
    """Return the mean cost of a run's episodes, (runs,), with this number of irrelevant features.

    act: returns the forces, (runs, episodes), for observations (runs, episodes, features).
    """
    worlds = [Reach(irrelevant) for _ in range(runs * episodes)]
    seen = np.stack([world.reset(seed=number % episodes)[0] for number, world in enumerate(worlds)])
    costs = np.zeros(len(worlds))
    done = False
    while not done:
        with torch.no_grad():
            forces = act(torch.as_tensor(seen).reshape(runs, episodes, -1)).reshape(-1, 1).numpy()
        for number, world in enumerate(worlds):
            seen[number], reward, _, done, _ = world.step(forces[number])
            costs[number] -= reward
    return np.asarray(costs.reshape(runs, episodes).mean(-1))


def score_policies(
    kinds: Sequence[str],
    trainings: Mapping[str, Task],
    tested_with: Sequence[int],
    *,
    runs: int,
    penalty: float,
    episodes: int,
    **sizes: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every kind in every way, plain and penalised, and test it with several numbers of irrelevant features.

    kinds: of policy. trainings: the task of each by name. tested_with: numbers of irrelevant features. runs, episodes:
    how many. penalty: on the squares of weights. sizes: what else `train` takes. Returns the scores (policy, training,
    weights, run, tested_with, score, share), where 0 is doing nothing, 1 the controller, and share what the relevant
    features have of the attention; and the learnt spectra (training, weights and the columns of `Heads.spectrum`).
    """
    penalties = torch.tensor([0.0, penalty], dtype=torch.float64).repeat_interleave(runs)
    marks = {"weights": [PLAIN] * runs + [PENALISED] * runs, "run": [*range(runs)] * 2}
    features = RELEVANT + max(*tested_with, *(task[0] for task in trainings.values()))
    drawn = torch.randn(1, 32, features, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    forces = (lambda seen: torch.zeros(seen.shape[:-1]), controller)
    idle, best = (episode_costs(act, 1, 0, episodes)[0] for act in forces)
    tables, spectra = [], []
    for name, task in trainings.items():
        for kind in kinds:
            policy = train(kind, task, penalties, features=features, **sizes).requires_grad_(False)
            for tested in tested_with:
                score = (idle - episode_costs(policy, 2 * runs, tested, episodes)) / (idle - best)
                weights = policy.weights(drawn[..., : RELEVANT + tested].expand(2 * runs, -1, -1))
                share = weights[..., :RELEVANT].sum(-1) / weights.sum(-1)
                measured = {"tested_with": tested, "score": score, "share": share.mean(-1)}
                tables.append(pd.DataFrame(marks | {"policy": kind, "training": name} | measured))
            if policy.heads is not None:
                spectra.append(policy.heads.spectrum().assign(**marks, training=name))
    return pd.concat(tables, ignore_index=True), pd.concat(spectra, ignore_index=True)


def attention_beats_mlp(tables: Tables, gain: float = GAIN) -> Verdict:
    """Judge attention minus MLP by training, paired by run, with the most irrelevant features. Reads `scores`."""
    return _differences(tables["scores"], MLP, gain)


def attention_beats_sum(tables: Tables) -> Verdict:
    """Judge attention minus the sum without it, as `attention_beats_mlp`."""
    return _differences(tables["scores"], SUM, GAIN)


def _differences(scores: pd.DataFrame, other: str, gain: float) -> Verdict:
    hardest = scores[scores["tested_with"] == scores["tested_with"].max()]
    cases = {}
    for (training, weights), line in hardest.groupby(["training", "weights"], sort=False):
        wide = line.pivot(index="run", columns="policy", values="score")
        cases[f"{training}, {weights}"] = above(t_interval(wide[ATTENTION] - wide[other]), gain)
    return settings_verdict(cases)


SETTING = "a control task with three relevant features"
RULE = "With the most irrelevant features tested, in each training, with and without a penalty on weights, the score "
against = partial(Claim, chapter="agents", tables=("scores",), figure="fig-agents", setting=SETTING)
CLAIMS = (
    against(
        name="attention-bears-irrelevant-features",
        provenance="literature",
        statement="With many irrelevant features a policy that attends to features is better than an MLP of like size.",
        rule=f"{RULE}exceeds that of the MLP by more than 0.02 (paired 95% t interval over runs).",
        refuted_by="a difference below 0.02 in each training",
        judge=attention_beats_mlp,
        threshold=Threshold("gain in score", GAIN, (0.0, 0.01, 0.02, 0.05, 0.1), attention_beats_mlp),
    ),
    against(
        name="attention-does-more-than-names",
        provenance="ours",
        statement="It is attention that does so: the same policy without it, a sum over named features, is worse.",
        rule=f"{RULE}exceeds that of the sum by more than 0.02 (paired 95% t interval over runs).",
        refuted_by="a difference below 0.02 in each training",
        judge=attention_beats_sum,
    ),
)
