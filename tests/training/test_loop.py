"""Training: batches and schedule against their definition, and a run that is killed, stopped or full of NaN."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qkrepro.cli.app import app
from qkrepro.errors import ArgumentError, CorpusError, RunError
from qkrepro.theory.spectrum import qk_eigenvalues
from qkrepro.training import loop
from qkrepro.training.configuration import RunConfiguration, configuration_from, described, parse_settings
from qkrepro.training.corpus import load_corpus, synthetic_corpus
from qkrepro.training.initial_weights import build_model
from qkrepro.training.loop import Busy, Interrupted, _locked, _Run, epoch_blocks, run_folder, train, updates_an_epoch
from qkrepro.training.measurements import cut, mean_loss, measure
from qkrepro.training.records import RECORD_FILES, read_arrays, read_records, read_run
from qkrepro.training.resume import BEST, CHECKPOINT
from qkrepro.training.vocabulary_loss import vocabulary_loss

TINY = RunConfiguration(
    d_model=16, d_ff=16, length=32, batch=8, epochs=0.1, warmup=10, evaluate_every=10, measured_sequences=4
)
SAME_BYTES = ("metrics.csv", "spectrum.npz", "run.json")


@pytest.fixture(autouse=True, scope="module")
def _same_threads_and_revision():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QKREPRO_REVISION", "tested")  # a commit while the tests run is no difference between runs
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, _same_threads_and_revision) -> Path:
    return train(TINY, tmp_path_factory.mktemp("runs"), progress=False)


def program(out: Path, *, epochs: float) -> list[str]:
    code = (
        "import sys; from qkrepro.training.loop import train; from tests.training.test_loop import TINY, replace;"
        "train(replace(TINY, epochs=float(sys.argv[2])), sys.argv[1], progress=False, checkpoint_seconds=0)"
    )
    return [sys.executable, "-c", code, str(out), str(epochs)]


@given(tokens=st.integers(100, 5000), length=st.integers(2, 50), seed=st.integers(0, 2**20), epoch=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_blocks_of_an_epoch_are_disjoint_and_leave_room_for_their_targets(tokens, length, seed, epoch):
    starts = epoch_blocks(tokens, length, seed, epoch).sort().values
    assert int(starts[0]) >= 0
    assert int(starts[-1]) + length < tokens
    assert bool((starts.diff() == length).all())


def test_order_of_an_epoch_follows_from_seed_and_epoch_alone():
    assert torch.equal(epoch_blocks(5000, 20, 3, 7), epoch_blocks(5000, 20, 3, 7))
    assert not torch.equal(epoch_blocks(5000, 20, 3, 7), epoch_blocks(5000, 20, 3, 8))
    assert not torch.equal(epoch_blocks(5000, 20, 3, 7), epoch_blocks(5000, 20, 4, 7))


@given(tokens=st.integers(12, 200), length=st.integers(2, 11))
@settings(max_examples=50, deadline=None)
def test_blocks_of_a_split_cover_every_target_once(tokens, length):
    stream = torch.arange(tokens)
    blocks = cut(stream, length)
    assert torch.cat([block.targets.flatten() for block in blocks]).tolist() == list(range(1, tokens))
    assert torch.cat([block.inputs.flatten() for block in blocks]).tolist() == list(range(tokens - 1))


def test_chosen_validation_blocks_are_the_same_for_all_runs_and_whole():
    stream = torch.arange(1000)
    (first,), (second,) = cut(stream, 10, 55), cut(stream, 10, 55)
    assert torch.equal(first.inputs, second.inputs)
    assert first.inputs.shape == (5, 10)
    assert bool((first.inputs[:, 0] % 10 == 0).all())


def test_mean_loss_equals_the_cross_entropy_of_the_logits():
    corpus = synthetic_corpus()
    model = build_model(TINY, corpus.vocabulary)
    blocks = cut(corpus.valid[:1000], 32)
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(b.inputs).flatten(0, 1), b.targets.flatten(), reduction="sum") for b in blocks]
    assert mean_loss(model, blocks, 8) == pytest.approx(float(sum(losses)) / 999, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_dropout_on_or_off_as_it_was(training):
    corpus = synthetic_corpus()
    model = build_model(replace(TINY, dropout=0.5), corpus.vocabulary).train(training)
    blocks = cut(corpus.valid[:256], 32)
    assert mean_loss(model, blocks, 8) == mean_loss(model, blocks, 8)
    assert model.training is training
    measure(model, blocks[0].inputs)
    assert all(module.training is training for module in model.modules())


def test_measured_attention_is_that_of_the_definition():
    corpus = synthetic_corpus()
    model = build_model(TINY, corpus.vocabulary)
    tokens = corpus.valid[:128].view(4, 32)
    head = model.qk_weights()[0]
    with torch.no_grad():
        model.eval()
        x = model.trace(tokens)[0].inputs.double()
        w = head.w_q.double().T @ head.w_k.double()  # q = w_q x, so that the logit of key i is x_tᵀ W x_i
        logits = x @ w @ x.mT / math.sqrt(16)
        rows = [torch.softmax(logits[:, t, : t + 1], -1) for t in range(32)]
        entropy = torch.stack([-(row * row.log()).sum(-1) for row in rows]).mean()
    found = measure(model, tokens).numbers
    assert found["valid_entropy"] == pytest.approx(float(entropy), rel=1e-5)
    assert found["trace"] == pytest.approx(float(w.trace()), rel=1e-5)
    assert found["frobenius"] == pytest.approx(float(w.norm()), rel=1e-5)


def test_predicted_share_is_that_of_simulated_walks_with_the_layers_increments():
    """The logit of token i is Gaussian in the prediction; here walks of the same covariance and bias are drawn."""
    corpus = synthetic_corpus()
    model = build_model(replace(TINY, d_model=64, start_gain=2.0), corpus.vocabulary)
    head = model.qk_weights()[0]
    with torch.no_grad():
        model.layers[0].attention.query.bias.normal_(generator=torch.Generator().manual_seed(0))
    tokens = corpus.valid[:640].view(20, 32)
    predicted = torch.from_numpy(measure(model, tokens).arrays["predicted_profile"][0, 0]).double()
    model.eval()
    x = model.trace(tokens)[0].inputs.double()
    w_q, w_k, b_q = (w.detach().double() for w in head[2:5])
    cov = torch.cov(x.diff(dim=1).flatten(0, 1).T)
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(4000, 32, 64, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(cov).T
    walk = steps.cumsum(1)  # (walks, 32, d_model)
    query = walk[:, -1] @ w_q.T + b_q
    logits = torch.einsum("nd,nid->ni", query @ w_k, walk)
    centred = (logits - logits.mean(1, keepdim=True)) / math.sqrt(64)
    share = ((centred > -1) & (centred < 31)).double().mean(0)
    assert float((share - predicted).abs().max()) < 0.05  # the Gaussian form at finite d, and 4000 walks


def test_start_has_exactly_the_chosen_spectrum():
    model = build_model(replace(TINY, start_mean=0.5, start_deviation=0.25), 100)
    head = model.qk_weights()[0]
    values = qk_eigenvalues(head.w_q.detach(), head.w_k.detach())
    assert float(values.imag.abs().max()) < 1e-4
    assert float(values.real.mean()) == pytest.approx(0.5, abs=1e-4)
    assert float(values.real.std(correction=0)) == pytest.approx(0.25, abs=1e-4)


def test_start_leaves_all_other_weights_as_they_were():
    plain, started = build_model(TINY, 100), build_model(replace(TINY, start_gain=3.0), 100)
    changed = {name for name, value in plain.state_dict().items() if not torch.equal(value, started.state_dict()[name])}
    assert changed == {"layers.0.attention.query.weight", "layers.0.attention.key.weight"}


def test_start_with_several_heads_is_refused():
    with pytest.raises(ArgumentError, match="heads must be 1"):
        build_model(replace(TINY, heads=2, start_mean=0.0, start_deviation=1.0), 100)


def test_record_has_a_row_an_evaluation_from_update_0_on(finished):
    table = read_records(finished)
    assert table["update"].tolist() == [0, 10, 20, 30, 39]
    assert table["valid_perplexity"].tolist() == pytest.approx([math.exp(loss) for loss in table["valid_loss"]])
    never = {"start_mean", "start_deviation", "vocabulary"}
    assert set(table.columns[table.isna().any()]) == never
    assert read_arrays(finished)["eigenvalues"].shape == (5, 1, 1, 16)


def test_training_brings_the_loss_down_but_not_below_the_entropy_of_the_corpus(finished):
    table = read_records(finished)
    assert table["valid_loss"].iloc[-1] < table["valid_loss"].iloc[0] - 0.05
    assert table["valid_loss"].iloc[-1] > table["corpus_entropy"].iloc[0]


def test_record_holds_no_path_and_no_leftover_checkpoint(finished):
    assert sorted(path.name for path in finished.iterdir()) == sorted([*RECORD_FILES, BEST, "lock", "vocabulary.txt"])
    assert str(finished.parent) not in (finished / "run.json").read_text()


def test_summary_is_the_loss_of_the_best_checkpoint(finished):
    corpus = synthetic_corpus()
    model = build_model(TINY, corpus.vocabulary)
    model.load_state_dict(loop.safetensors.torch.load_file(finished / BEST))
    assert read_run(finished)["summary"]["test_loss"] == mean_loss(model, cut(corpus.test, 32), 8)


def test_finished_run_is_not_repeated(finished, monkeypatch):
    monkeypatch.setattr(loop, "_Run", None)
    assert train(TINY, finished.parent, progress=False) == finished


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(finished, tmp_path):
    again = train(TINY, tmp_path, progress=False)
    for name in SAME_BYTES:
        assert (again / name).read_bytes() == (finished / name).read_bytes()
    other = train(replace(TINY, seed=1), tmp_path, progress=False)
    assert (other / "metrics.csv").read_bytes() != (finished / "metrics.csv").read_bytes()


def test_locater_enters_the_loss_and_shrinks_the_scale(finished, tmp_path):
    locater = read_records(train(replace(TINY, kappa=0.1), tmp_path, progress=False))
    assert locater["penalty"].iloc[-1] > 0
    assert locater["frobenius"].iloc[-1] < read_records(finished)["frobenius"].iloc[-1] - 0.1


def test_projection_starts_at_the_target_trace_and_keeps_it_closer_than_the_penalty_does(tmp_path):
    run = replace(TINY, kappa=1e-4, target_trace=3.0)
    traces = {
        mean: read_records(train(replace(run, mean=mean), tmp_path, progress=False))["trace"]
        for mean in ("projection", "penalty")
    }
    assert traces["projection"].iloc[0] == pytest.approx(3.0, abs=1e-5)
    assert abs(traces["projection"].iloc[-1] - 3.0) < 0.5 < abs(traces["penalty"].iloc[-1] - 3.0)


def test_paired_runs_share_start_and_batches(tmp_path):
    configuration = replace(TINY, epochs=0.003, kappa=1e-9)
    rows = [read_records(train(replace(configuration, kappa=k), tmp_path, progress=False)) for k in (0.0, 1e-9)]
    for name in ("train_loss", "valid_loss"):
        assert rows[0][name].tolist() == pytest.approx(rows[1][name].tolist(), rel=1e-6)


def test_patience_stops_the_run_after_the_best_and_says_so(tmp_path):
    run = replace(TINY, epochs=1.0, learning_rate=0.5, patience=1)
    summary = read_run(train(run, tmp_path, progress=False))["summary"]
    assert summary["stopped_early"]
    assert summary["last_update"] == summary["best_update"] + run.evaluate_every


def stop_and_continue(configuration: RunConfiguration, out: Path) -> Path:
    """A run that is stopped by Ctrl-C after update 17, and its record once it was continued."""
    original = _Run.step

    def step_then_ctrl_c(run):
        original(run)
        if run.progress.update == 17:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "step", step_then_ctrl_c)
        with pytest.raises(Interrupted, match="stopped at update 17 of 39; saved in"):
            train(configuration, out, progress=False)
    return train(configuration, out, progress=False)


def test_run_stopped_by_ctrl_c_saves_and_continues_to_the_same_bytes(finished, tmp_path):
    folder = stop_and_continue(TINY, tmp_path)
    for name in SAME_BYTES:
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


NEW_OPTIONS = {
    "tokens": {"kappa": 0.01, "penalised": "tokens", "target_trace": 4.0},
    "tokens kept": {"kappa": 0.01, "penalised": "tokens", "scale": "deviation", "mean": "keep"},
    "qk-norm": {"peer": "qk-norm"},
    "temperature": {"temperature": 0.1},
    "sigma-reparam": {"peer": "sigma-reparam"},
    "qk-clip": {"peer": "qk-clip", "peer_strength": 0.2},
    "qk-weight-decay": {"peer": "qk-weight-decay", "peer_strength": 1.0},
}


@pytest.mark.parametrize("name", NEW_OPTIONS)
def test_treatment_changes_the_run_and_is_continued_to_the_same_bytes(finished, name, tmp_path):
    configuration = replace(TINY, schedule="linear", **NEW_OPTIONS[name])
    whole = train(configuration, tmp_path / "whole", progress=False)
    plain = train(replace(TINY, schedule="linear"), tmp_path / "plain", progress=False)
    assert (whole / "metrics.csv").read_bytes() != (plain / "metrics.csv").read_bytes()
    stopped = stop_and_continue(configuration, tmp_path / "stopped")
    for file in SAME_BYTES:
        assert (stopped / file).read_bytes() == (whole / file).read_bytes()
    assert (plain / "metrics.csv").read_bytes() != (finished / "metrics.csv").read_bytes()


def test_penalty_on_tokens_brings_their_trace_to_its_target(tmp_path):
    """Of the matrix that is penalised, by the covariance of evaluation, which knows no dropout."""
    run = replace(TINY, kappa=1.0, penalised="tokens", target_trace=6.0, dropout=0.0, learning_rate=0.01, epochs=0.3)
    last = read_records(train(run, tmp_path, progress=False)).iloc[-1]
    assert last["walk_trace"] == pytest.approx(6.0 * 16 / 17, rel=0.1)  # the penalty's own minimum, r = 16
    assert last["walk_concentration"] > 6  # of at most 16


def test_summary_holds_the_losses_of_the_end_beside_those_of_the_best_checkpoint(tmp_path):
    diverging = replace(TINY, epochs=0.2, learning_rate=0.3)
    folder = train(diverging, tmp_path, progress=False)
    summary, rows = read_run(folder)["summary"], read_records(folder)
    assert summary["best_update"] < rows["update"].iloc[-1]
    assert summary["end_valid_loss"] > summary["valid_loss"]
    assert summary["end_test_perplexity"] == pytest.approx(math.exp(summary["end_test_loss"]))


def test_losses_of_the_end_are_those_of_the_best_checkpoint_where_that_is_last(finished):
    summary = read_run(finished)["summary"]
    assert summary["best_update"] == summary["last_update"]
    for name in ("valid_loss", "valid_perplexity", "test_loss", "test_perplexity"):
        assert summary[f"end_{name}"] == summary[name]


@pytest.mark.slow
def test_run_killed_at_any_moment_continues_to_the_same_bytes(tmp_path):
    """Five kills at moments that are spread over start-up, checkpoints and evaluations; a checkpoint every update."""
    undisturbed = train(replace(TINY, epochs=0.5), tmp_path / "undisturbed", progress=False)
    for moment in range(5):
        process = subprocess.Popen(program(tmp_path / "killed", epochs=0.5))
        deadline = time.monotonic() + 60
        while not list((tmp_path / "killed").glob("*/checkpoint.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.037 * moment**2)
        process.kill()
        process.wait()
    subprocess.run(program(tmp_path / "killed", epochs=0.5), check=True)
    killed = tmp_path / "killed" / undisturbed.name
    for name in SAME_BYTES:
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not list(killed.glob(".*"))


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path):
    folder = train(TINY, tmp_path, progress=False)
    kept = sorted(path.name for path in folder.iterdir())
    (folder / ".checkpoint.pt.4711.139903754828672").write_bytes(b"half")
    train(TINY, tmp_path, progress=False)
    assert sorted(path.name for path in folder.iterdir()) == kept


def test_loss_that_is_not_finite_names_the_update_and_the_checkpoint(tmp_path, monkeypatch):
    original = vocabulary_loss

    def explode(*args, **kwargs):
        calls.append(0)
        return original(*args, **kwargs) * (math.nan if len(calls) == 7 else 1.0)

    calls: list[int] = []
    monkeypatch.setattr(loop, "vocabulary_loss", explode)
    with pytest.raises(RunError, match=r"the loss of update 7 is nan, the run stops; the last good .*checkpoint\.pt"):
        train(TINY, tmp_path, progress=False, checkpoint_seconds=0)
    assert not list(tmp_path.glob("*/run.json"))


def test_full_disk_is_a_clear_error_and_leaves_no_half_record(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        train(TINY, tmp_path, progress=False)
    assert [path.name for path in tmp_path.glob("*/*")] == ["lock"]


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        train(TINY, tmp_path / "taken", progress=False)


def test_damaged_checkpoint_is_named_and_not_used(tmp_path):
    folder = run_folder(TINY, load_corpus("synthetic"), tmp_path)
    folder.mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"checkpoint\.pt is damaged .*; delete it to start the run again"):
        train(TINY, tmp_path, progress=False)


def test_run_of_another_process_is_left_alone(tmp_path):
    folder = run_folder(TINY, load_corpus("synthetic"), tmp_path)
    with _locked(folder), pytest.raises(Busy, match="another process"):
        train(TINY, tmp_path, progress=False)


def test_corpus_too_short_for_a_batch_is_refused():
    with pytest.raises(CorpusError, match="at least one batch of 64"):
        updates_an_epoch(synthetic_corpus(tokens=1000), replace(TINY, batch=64))


@pytest.mark.parametrize(
    "bad",
    [
        *[{"schedule": "cosine"}, {"penalised": "values"}, {"peer": "prayer"}],
        *[{"peer_strength": 1.0}, {"temperature": 0.0}],
        {"temperature": 0.5, "peer": "qk-clip", "peer_strength": 1.0},
        *[{"kappa": -1.0}, {"precision": "fp8"}, {"epochs": 0.0}, {"length": 1}, {"start_mean": 0.0}, {"threads": 0}],
    ],
)
def test_bad_configuration_is_refused(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        configuration_from(bad)


def test_unknown_entry_is_refused():
    with pytest.raises(ArgumentError, match=r"configuration entry must be one of .*, got 'kapa'"):
        configuration_from({"kapa": 1})


def test_settings_are_read_as_yaml():
    assert parse_settings(["batch=8", "start_mean=0.5", "norm=pre"]) == {"batch": 8, "start_mean": 0.5, "norm": "pre"}
    with pytest.raises(ArgumentError, match="must be NAME=VALUE"):
        parse_settings(["batch"])


def test_identity_sees_numbers_and_not_how_they_are_written():
    corpus = synthetic_corpus()
    identity = described(replace(TINY, kappa=0), corpus)["identity"]
    assert identity == described(replace(TINY, kappa=0.0), corpus)["identity"]
    assert identity != described(replace(TINY, kappa=0.0, threads=2), corpus)["identity"]


def options(*, out: Path, epochs: float) -> list[str]:
    settings = ("d_model=16", "d_ff=16", "length=32", "batch=8", "evaluate_every=10", "measured_sequences=4")
    chosen = [part for setting in settings for part in ("--set", setting)]
    return ["train", "--out", str(out), "--epochs", str(epochs), *chosen]


def test_command_says_where_the_record_is_and_what_it_found(tmp_path):
    done = CliRunner().invoke(app, [*options(out=tmp_path, epochs=0.03), "--quiet"])
    assert done.exit_code == 0, done.output
    (run,) = tmp_path.iterdir()
    perplexity = read_run(run)["summary"]["test_perplexity"]
    assert done.output.startswith(f"{run}: best at update ")
    assert f"{perplexity:.2f} on test" in done.output


@pytest.mark.slow
def test_ctrl_c_on_the_command_says_how_to_go_on_after_a_bar_with_all_figures(tmp_path):
    command = [sys.executable, "-c", "from qkrepro.cli.app import main; main()", *options(out=tmp_path, epochs=500)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=90)
    assert process.returncode == 130
    for figure in ("loss=", "perplexity=", "entropy=", "tokens/s=", "<"):  # tqdm writes elapsed<left
        assert figure in shown
    assert "saved in" in shown
    assert f"to go on: qkrepro train --out {tmp_path} --epochs 500" in shown
    assert list(tmp_path.glob("*/checkpoint.pt"))
