"""The sweep files of results/PLAN.md are what the plan says: paired, disjoint, and none of them a run of another."""

import re
from pathlib import Path

import pytest

from qkrepro.training.configuration import RunConfiguration, settings
from qkrepro.training.locater import LocAteR
from qkrepro.training.sweep import read_sweep

RESULTS = Path(__file__).parents[2] / "results"
PLAN = (RESULTS / "PLAN.md").read_text(encoding="utf-8")
MAP = ("map-middle", "map-peers", "map-strengths")
OF_AN_ARM = ("kappa", "target_trace", "scale", "mean", "penalised", "peer", "peer_strength")
STARTS = ("start_mean", "start_deviation")


def runs(name: str) -> list[RunConfiguration]:
    return read_sweep(RESULTS / f"{name}.yaml")


def common(run: RunConfiguration, without: tuple[str, ...]) -> dict:
    return {name: value for name, value in vars(run).items() if name not in without}


def test_runs_of_the_map_differ_in_treatment_and_seed_alone_and_are_listed_once():
    every = [run for name in MAP for run in runs(name)]
    rest = {str(common(run, ("seed", *OF_AN_ARM, *STARTS))) for run in every}
    assert len(rest) == 1
    assert len({str(settings(run)) for run in every}) == len(every)
    assert f"The whole map has {len(every)} runs" in PLAN


def test_every_seed_of_the_map_has_the_same_arms():
    every = [run for name in MAP for run in runs(name)]
    arms = {seed: {str(common(run, ("seed",))) for run in every if run.seed == seed} for seed in (0, 1, 2)}
    assert arms[0] == arms[1] == arms[2]
    assert sum(len(each) for each in arms.values()) == len(every)


def test_every_treatment_of_the_map_has_every_kappa():
    every = [run for name in MAP for run in runs(name) if run.kappa > 0]
    treatments: dict[str, set[float]] = {}
    for run in every:
        treatments.setdefault(str(common(run, ("seed", "kappa"))), set()).add(run.kappa)
    assert len(treatments) == 13
    assert set(map(frozenset, treatments.values())) == {frozenset({1e-4, 1e-3, 1e-2, 1e-1})}


def test_first_seed_comes_first_and_begins_with_the_baseline():
    middle = runs("map-middle")
    assert [run.seed for run in middle] == sorted(run.seed for run in middle)
    assert (middle[0].kappa, middle[0].peer, middle[0].start_mean) == (0.0, "none", None)


def test_concentrated_starts_have_the_trace_that_their_penalty_wants():
    started = [run for name in MAP for run in runs(name) if run.start_mean is not None and run.kappa > 0]
    assert {run.start_mean * run.d_model for run in started} == {16.0, 64.0}
    assert all(run.start_mean * run.d_model == run.target_trace and run.start_deviation == 0 for run in started)


@pytest.mark.parametrize("name", MAP)
def test_every_form_of_the_regulariser_is_one_that_can_be_built(name):
    for run in runs(name):
        tokens = list if run.penalised == "tokens" else None
        LocAteR(run.kappa, run.target_trace, scale=run.scale, mean=run.mean, tokens=tokens)


def test_seeds_that_judge_choose_nothing():
    chosen = {run.seed for name in (*MAP, "search-linear") for run in runs(name)}
    assert {run.seed for run in runs("confirm-full")} == {10, 11, 12, 13, 14}
    assert not chosen & {10, 11, 12, 13, 14}
    earlier = {run.seed for path in RESULTS.glob("*.yaml") if path.stem != "confirm-full" for run in read_sweep(path)}
    assert not earlier & {10, 11, 12, 13, 14}


def test_plan_names_every_word_of_a_verdict_with_its_rule():
    words = re.findall(r"^- \*\*(.+?)\*\*:", PLAN, flags=re.MULTILINE)
    assert words == ["not run", "not a test", "reproduced", "partly", "not reproduced", "inconclusive"]
