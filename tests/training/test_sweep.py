"""Sweeps: the cross product in order, nothing run twice, and a killed worker that leaves no trace in the record."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from qkrepro.errors import ArgumentError, RunError
from qkrepro.training import sweep
from qkrepro.training.configuration import configuration_from
from qkrepro.training.corpus import load_corpus
from qkrepro.training.loop import run_folder, train
from qkrepro.training.records import RECORD_FILES, find_records, write_json
from qkrepro.training.sweep import read_sweep, run_recorded, run_sweep

FIXED = {"d_model": 16, "d_ff": 16, "length": 32, "batch": 8, "epochs": 0.05, "warmup": 10, "evaluate_every": 10}
FIXED |= {"measured_sequences": 4}
SAME_BYTES = ("metrics.csv", "spectrum.npz", "run.json")


@pytest.fixture(autouse=True)
def _revision(monkeypatch):
    monkeypatch.setenv("QKREPRO_REVISION", "tested")


def write_sweep(folder: Path, lists: dict, **fixed) -> Path:
    path = folder / "records" / "some.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"fixed": FIXED | fixed, "lists": lists}, sort_keys=False))
    return path


def test_runs_are_the_cross_product_with_the_last_list_fastest(tmp_path):
    path = write_sweep(tmp_path, {"seed": [3, 1], "kappa": [0.0, 0.1]})
    runs = [(run.seed, run.kappa, run.batch) for run in read_sweep(path)]
    assert runs == [(3, 0.0, 8), (3, 0.1, 8), (1, 0.0, 8), (1, 0.1, 8)]


def test_mappings_in_a_list_vary_several_entries_together(tmp_path):
    starts = [{"start_gain": 6.0}, {"start_mean": 1.0, "start_deviation": 0.0}]
    path = write_sweep(tmp_path, {"seed": [0, 1], "start": starts})
    runs = [(run.seed, run.start_gain, run.start_mean, run.start_deviation) for run in read_sweep(path)]
    assert runs == [(0, 6.0, None, None), (0, 1.0, 1.0, 0.0), (1, 6.0, None, None), (1, 1.0, 1.0, 0.0)]


@pytest.mark.parametrize(
    "text", ["[]", "lists: {seed: 1}", "lists: {seed: []}", "seeds: [1]", "{", "fixed: {a: 1}\nlists: {a: [1]}"]
)
def test_file_of_another_form_is_refused(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(RunError, match=r"bad\.yaml is (no sweep|not YAML)"):
        read_sweep(tmp_path / "bad.yaml")


def test_missing_file_and_unknown_entry_are_named(tmp_path):
    with pytest.raises(RunError, match=r"none\.yaml cannot be read"):
        read_sweep(tmp_path / "none.yaml")
    with pytest.raises(ArgumentError, match="kapa"):
        read_sweep(write_sweep(tmp_path, {"kapa": [1]}))


def test_recorded_runs_need_no_cluster(tmp_path, monkeypatch):
    path = write_sweep(tmp_path, {"seed": [0, 1]})
    for configuration in read_sweep(path):
        run_recorded(configuration, tmp_path / "runs" / "some", path.with_suffix(""))
    monkeypatch.setattr(sweep, "_cluster", None)
    lines: list[str] = []
    outcome = run_sweep(path, runs=tmp_path / "runs", log=lines.append)
    assert lines == ["2 runs, 2 of them recorded"]
    assert outcome.table["seed"].tolist() == [0, 1]
    assert outcome.failed == {}


def test_record_is_copied_without_checkpoints(tmp_path):
    (configuration,) = read_sweep(write_sweep(tmp_path, {"seed": [0]}))
    record = run_recorded(configuration, tmp_path / "runs", tmp_path / "records" / "some")
    assert sorted(path.name for path in record.iterdir()) == sorted(RECORD_FILES)


def test_scheduler_that_does_not_answer_is_a_clear_error(tmp_path, monkeypatch):
    path = write_sweep(tmp_path, {"seed": [0]})
    with pytest.raises(RunError, match=r"scheduler must be .*, got 'nonsense://1'"):
        run_sweep(path, runs=tmp_path / "runs", scheduler="nonsense://1", log=lambda _: None)


@pytest.mark.slow
def test_sweep_on_its_own_cluster_equals_runs_by_hand(tmp_path):
    path = write_sweep(tmp_path, {"kappa": [0.0, 0.1]})
    outcome = run_sweep(path, runs=tmp_path / "runs", workers=2, log=lambda _: None)
    assert outcome.table["kappa"].tolist() == [0.0, 0.1]
    for configuration in read_sweep(path):
        by_hand = train(configuration, tmp_path / "by-hand", progress=False)
        for name in SAME_BYTES:
            assert (path.with_suffix("") / by_hand.name / name).read_bytes() == (by_hand / name).read_bytes()


@pytest.mark.slow
def test_run_that_fails_is_reported_and_the_others_go_on(tmp_path):
    path = write_sweep(tmp_path, {"heads": [1, 3]})
    outcome = run_sweep(path, runs=tmp_path / "runs", workers=1, log=lambda _: None)
    assert len(outcome.table) == 1
    (reason,) = outcome.failed.values()
    assert "multiple of heads" in reason


@pytest.mark.slow
def test_run_of_another_sweep_is_waited_for_and_not_run_again(tmp_path):
    """The lock is held as by another sweep; its record, marked, is put in place before the lock is released."""
    path = write_sweep(tmp_path, {"seed": [0]})
    (configuration,) = read_sweep(path)
    elsewhere = train(configuration, tmp_path / "elsewhere", progress=False)
    write_json(elsewhere / "timing.json", {"made": "by another sweep"})
    folder = run_folder(configuration, load_corpus("synthetic"), (tmp_path / "runs" / "some").resolve())
    folder.mkdir(parents=True)
    lock = FileLock(folder / "lock")
    lock.acquire()
    sweeping = ThreadPoolExecutor().submit(run_sweep, path, runs=tmp_path / "runs", workers=1)
    time.sleep(15)
    assert not (path.with_suffix("") / folder.name).exists()
    for name in RECORD_FILES:
        (folder / name).write_bytes((elsewhere / name).read_bytes())
    lock.release()
    assert sweeping.result(120).failed == {}
    assert "by another sweep" in (path.with_suffix("") / folder.name / "timing.json").read_text()


@pytest.mark.slow
def test_run_of_a_killed_worker_continues_on_another_to_the_undisturbed_record(tmp_path):
    distributed = pytest.importorskip("distributed")
    path = write_sweep(tmp_path, {"seed": [0]}, epochs=2.0, evaluate_every=100)
    (configuration,) = read_sweep(path)
    dask = [sys.executable, "-m", "dask"]
    where = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    scheduler = [
        *dask,
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(where),
    ]
    worker = [*dask, "worker", "--scheduler-file", str(where), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    programs = [subprocess.Popen(command, **quiet) for command in (scheduler, worker, worker)]
    try:
        wait_for(where.exists)
        with distributed.Client(scheduler_file=str(where)) as client:
            client.wait_for_workers(2, timeout=60)
            address = client.scheduler.address
            options = {"runs": tmp_path / "runs", "scheduler": address, "checkpoint_seconds": 0.2}
            sweeping = ThreadPoolExecutor().submit(run_sweep, path, **options)
            wait_for(lambda: list((tmp_path / "runs").glob("some/*/checkpoint.pt")))
            (busy,) = [where for where, tasks in client.processing().items() if tasks]
            os.kill(client.run(os.getpid)[busy], signal.SIGKILL)
            assert sweeping.result(240).failed == {}
            assert len(client.nthreads()) == 1
    finally:
        for each in reversed(programs):
            each.kill()
            each.wait()
    (record,) = find_records(path.with_suffix(""))
    undisturbed = train(configuration_from(vars(configuration)), tmp_path / "undisturbed", progress=False)
    assert len(yaml.safe_load((record / "timing.json").read_text())["sessions"]) == 2
    for name in SAME_BYTES:
        assert (record / name).read_bytes() == (undisturbed / name).read_bytes()


def wait_for(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
