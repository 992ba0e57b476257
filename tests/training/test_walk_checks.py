"""Tokens of trained models against a random walk: models, logits and laws, and the records of a sweep."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml

from qkrepro.errors import RunError
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.loop import train
from qkrepro.training.measurements import measure
from qkrepro.training.records import read_run
from qkrepro.training.walk_checks import (
    LAWS,
    head_tokens,
    last_query_logits,
    law_distances,
    profile_laws,
    read_walk_records,
    seen_model,
    write_walk_records,
)

TINY = RunConfiguration(
    d_model=16, d_ff=16, length=32, batch=8, epochs=0.05, warmup=10, evaluate_every=10, measured_sequences=4
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("runs")
    train(TINY, folder / "some", progress=False)
    torch.set_num_threads(threads)
    return folder


def test_logits_of_the_last_query_are_those_of_the_model():
    seen = seen_model(TINY)
    for bias in (seen.model.layers[0].attention.query.bias, seen.model.layers[0].attention.key.bias):
        torch.nn.init.normal_(bias, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = seen.model.eval().trace(seen.tokens)[0].logits[:, 0, -1]
    found = last_query_logits(seen.model.qk_weights()[0], head_tokens(seen))
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-4)


def test_laws_hold_the_recorded_profiles_and_agree_on_a_model_whose_logits_vanish():
    seen = seen_model(replace(TINY, start_gain=1e-3))
    laws = profile_laws(seen, torch.Generator().manual_seed(6), draws=8)
    arrays = measure(seen.model, seen.tokens).arrays
    shares = {law: part["share"].to_numpy() for law, part in laws.groupby("law")}
    np.testing.assert_allclose(shares["measured"], arrays["nonsaturated_profile"][0, 0], atol=1e-6)
    np.testing.assert_allclose(shares["prediction"], arrays["predicted_profile"][0, 0], atol=1e-6)
    assert law_distances(laws) == pytest.approx(dict.fromkeys(LAWS, 0), abs=1e-6)


def test_model_of_a_run_is_the_one_at_its_best_checkpoint(trained):
    folder = next((trained / "some").iterdir())
    whole = seen_model(replace(TINY, measured_sequences=10**6), folder)
    with torch.no_grad():
        logits = whole.model.eval()(whole.tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), whole.tokens[:, 1:].flatten())
    assert float(loss) == pytest.approx(read_run(folder)["summary"]["valid_loss"], abs=0.05)
    with pytest.raises(RunError, match="in which a run was trained"):
        seen_model(TINY, trained)


def test_walk_records_of_a_sweep_are_written_read_and_the_same_twice(trained, tmp_path):
    fixed = {name: value for name, value in vars(TINY).items() if name not in ("seed", "kappa")}
    sweep = tmp_path / "some.yaml"
    sweep.write_text(yaml.safe_dump({"fixed": fixed, "lists": {"kappa": [0.0, 0.1], "seed": [0]}}))
    assert read_walk_records(sweep).checks.empty
    target = write_walk_records(sweep, trained, log=lambda _: None)
    first = [path.read_bytes() for path in sorted(target.iterdir())]
    write_walk_records(sweep, trained, log=lambda _: None)
    assert [path.read_bytes() for path in sorted(target.iterdir())] == first
    checks, profiles = read_walk_records(sweep)
    assert checks[["seed", "kappa"]].drop_duplicates().to_numpy().tolist() == [[0, 0]]  # the other run is not trained
    assert set(checks["moment"]) == {"start", "best checkpoint"}
    assert profiles.groupby("law")["location"].nunique().tolist() == [16] * 5


def test_walk_records_without_a_trained_run_or_of_another_form_are_refused(trained, tmp_path):
    sweep = tmp_path / "other.yaml"
    sweep.write_text(yaml.safe_dump({"fixed": {"d_model": 16}, "lists": {"seed": [0]}}))
    with pytest.raises(RunError, match="holds no trained run"):
        write_walk_records(sweep, trained, log=lambda _: None)
    (tmp_path / "walk" / "other").mkdir(parents=True)
    pd.DataFrame({"run": ["a"]}).to_csv(tmp_path / "walk" / "other" / "checks.csv", index=False)
    with pytest.raises(RunError, match="damaged"):
        read_walk_records(sweep)
