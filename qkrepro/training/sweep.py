"""`qkrepro sweep`: every run of a sweep file that is not recorded yet, on Dask's workers.

A sweep file NAME.yaml has two mappings, `fixed` (entries of the run configuration) and `lists` (entry: list of values;
or any name: list of mappings, for entries that vary together). Its runs are the cross product of the lists, the last
list varying fastest; their records lie in the folder NAME beside it, their checkpoints in RUNS/NAME. All workers share
both folders. Source: book, "Sweeps".
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from qkrepro.errors import RunError
from qkrepro.training.configuration import RunConfiguration, configuration_from
from qkrepro.training.corpus import Corpus, load_corpus
from qkrepro.training.loop import Busy, run_folder, train
from qkrepro.training.records import copy_record, is_recorded, read_runs

SUMMARY = ("best_epoch", "valid_perplexity", "test_perplexity", "valid_entropy", "trace", "frobenius")
BUSY_SECONDS = 2.0  # between two looks at a run that another sweep is working on


@dataclass
class SweepOutcome:
    """What a sweep did: one row per recorded run, and the reason for each run that has no record."""

    table: pd.DataFrame
    failed: dict[str, str] = field(default_factory=dict)


def read_sweep(path: str | Path) -> list[RunConfiguration]:
    """Return the configurations of a sweep file in the order they are run, the last list varying fastest.

    Raises RunError for a file that is missing or of another form, ArgumentError for an entry that is not allowed.
    """
    return [configuration_from(entries) for entries in _entries(path)]


def run_sweep(
    path: str | Path,
    *,
    data: str | Path | None = None,
    runs: str | Path = "runs",
    scheduler: str | None = None,
    workers: int | None = None,
    checkpoint_seconds: float = 60.0,
    log: Callable[[str], None] = print,
) -> SweepOutcome:
    """Run what is not recorded of a sweep file, one run per worker, and return the table of all its records.

    path: the sweep file. data: where WikiText-2 lies. runs: folder of the checkpoints. checkpoint_seconds: time between
    checkpoints. log: takes one line per run. scheduler: address of a Dask cluster, tcp://HOST:PORT; None starts one
    here with `workers` processes (default: the processors over the threads of a run). A run whose worker dies continues
    on another from its checkpoint; a run that another sweep is working on is waited for; a run that fails does not stop
    the others. Raises RunError for a file that is no sweep, a scheduler that does not answer, or workers of several
    threads.
    """
    records = Path(path).resolve().with_suffix("")
    shared = Path(runs).resolve() / records.name
    named = _named(read_sweep(path), data, shared)
    missing = {name: run for name, run in named.items() if not is_recorded(records / name)}
    log(f"{len(named)} runs, {len(named) - len(missing)} of them recorded")
    outcome = SweepOutcome(pd.DataFrame())
    if missing:
        threads = max(run.threads for run in missing.values())
        at_once = workers or max(1, min(len(missing), (os.cpu_count() or 1) // threads))
        with _cluster(scheduler, at_once) as client:
            given = (shared, records, Path(data).resolve() if data else None, checkpoint_seconds)
            outcome.failed = _work(client, missing, given, log)
    if any(is_recorded(records / name) for name in named):
        entries = _entries(path)
        names = list(dict.fromkeys(name for entry in entries for name in entry))
        varied = [name for name in names if len({str(entry.get(name)) for entry in entries}) > 1]
        table = read_runs(records)
        outcome.table = table.sort_values(varied or "run")[[*varied, *SUMMARY]].reset_index(drop=True)
    return outcome


def run_recorded(
    configuration: RunConfiguration,
    runs: Path,
    records: Path,
    data: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
) -> Path:
    """Train, unless the record is there, and copy the record to `records`; return its folder there.

    configuration, runs, data, checkpoint_seconds: of the run, as `train` takes them. Raises as `train` does; Busy when
    another process is working on this run.
    """
    folder = train(configuration, runs, data=data, progress=False, checkpoint_seconds=checkpoint_seconds)
    target = records / folder.name
    if not is_recorded(target):
        copy_record(folder, target)
    return target


def _work(
    client: Any, missing: dict[str, RunConfiguration], given: tuple[Any, ...], log: Callable[[str], None]
) -> dict[str, str]:
    """Submit all runs and wait; a busy one is submitted again until it is recorded. Returns the failures by name."""

    def submit(name: str) -> Any:
        future = client.submit(run_recorded, missing[name], *given, pure=False)
        names[future.key] = name
        return future

    names: dict[str, str] = {}
    failed: dict[str, str] = {}
    done = _distributed().as_completed([submit(name) for name in missing])
    for future in done:
        name = names.pop(future.key)
        error = future.exception()
        if isinstance(error, Busy):
            time.sleep(BUSY_SECONDS if not names else 0)
            done.add(submit(name))
        elif error is not None:
            failed[name] = str(error)
            log(f"{name} failed: {error}")
        else:
            log(f"{name} recorded; {len(names)} to go")
    return failed


@contextmanager
def _cluster(scheduler: str | None, workers: int) -> Iterator[Any]:
    """Yield a client of the cluster at this address, or of one that lives as long as the block."""
    distributed = _distributed()
    if scheduler is None:
        with (
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = distributed.Client(scheduler, timeout="20s")
    except (OSError, ValueError) as error:
        raise RunError(f"scheduler must be tcp://HOST:PORT and answer, got {scheduler!r} ({error})") from error
    with client:
        several = {name: count for name, count in client.nthreads().items() if count > 1}
        if several:
            raise RunError(f"workers must have one thread each (--nthreads 1), got {several}")
        yield client


def _distributed() -> Any:
    try:
        return import_module("distributed")
    except ImportError:
        raise RunError('a sweep needs Dask: pip install "qkrepro[sweep]"') from None


def _named(configurations: list[RunConfiguration], data: str | Path | None, runs: Path) -> dict[str, RunConfiguration]:
    """Return the configurations by the names of their folders; loads each corpus once, which fills the cache."""
    corpora: dict[tuple[str, int | None], Corpus] = {}
    named = {}
    for configuration in configurations:
        key = (configuration.corpus, configuration.vocabulary)
        corpora[key] = (
            corpora[key] if key in corpora else load_corpus(configuration.corpus, data, configuration.vocabulary)
        )
        named[run_folder(configuration, corpora[key], runs).name] = configuration
    return named


def _content(path: str | Path) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not YAML: {error}") from error


def _entries(path: str | Path) -> list[dict[str, Any]]:
    """Return the entries of each run of a sweep file, in the order they are run."""
    fixed, lists = _parts(path, _content(path))
    runs = []
    for values in product(*lists.values()):
        entries = dict(fixed)
        for name, value in zip(lists, values, strict=True):
            entries |= value if isinstance(value, dict) else {name: value}
        runs.append(entries)
    return runs


def _parts(path: str | Path, content: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    error = RunError(f"{path} is no sweep, which has `fixed`, a mapping, and `lists`, a mapping to non-empty lists")
    if not isinstance(content, dict) or not set(content) <= {"fixed", "lists"}:
        raise error
    fixed, lists = content.get("fixed") or {}, content.get("lists") or {}
    if not isinstance(fixed, dict) or not isinstance(lists, dict) or set(fixed) & set(lists):
        raise error
    if not all(isinstance(values, list) and values for values in lists.values()):
        raise error
    return fixed, lists
