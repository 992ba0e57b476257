"""Records of runs: a folder each with run.json, metrics.csv, timing.json and spectrum.npz, small enough to commit.

run.json is written last: a folder that has it holds a finished run. Two equal runs have equal files byte for byte
except timing.json, which holds what may differ. Source: book, "LocAteR".
"""

import hashlib
import io
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qkrepro.errors import RunError
from qkrepro.files import git, write_atomically

RECORD_FILES = ("metrics.csv", "spectrum.npz", "timing.json", "run.json")  # in the order they are written
PACKAGES = ("qkrepro", "torch", "numpy")
INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "MKL_CBWR")  # variables by which PyTorch and MKL choose instructions
ADDED: Mapping[str, Any] = {  # entries that configurations gained after the first records: what those runs had
    "schedule": "inverse-square-root",
    "penalised": "weights",
    "peer": "none",
    "peer_strength": 0.0,
    "temperature": 1.0,
}


def run_identity(configuration: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that name a configuration (JSON values; the order of its keys does not matter)."""
    text = json.dumps(configuration, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write metrics.csv, one row per evaluation, columns in the order of the first row."""
    text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    write_atomically(folder / "metrics.csv", text.encode())


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write spectrum.npz; the first axis of every array is the evaluation, as in metrics.csv."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_atomically(folder / "spectrum.npz", buffer.getvalue())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys, atomically."""
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def is_recorded(folder: Path) -> bool:
    """Return whether the folder holds the record of a finished run."""
    return all((folder / name).is_file() for name in RECORD_FILES)


def copy_record(source: Path, target: Path) -> None:
    """Copy the files of a record, run.json last. Raises RunError when `source` is not a finished record."""
    if not is_recorded(source):
        raise RunError(f"{source} holds no finished record, which has {', '.join(RECORD_FILES)}")
    for name in RECORD_FILES:
        write_atomically(target / name, (source / name).read_bytes())


def read_run(folder: Path) -> dict[str, Any]:
    """Return the content of a record's run.json. Raises RunError when it is missing or damaged."""
    try:
        content: dict[str, Any] = json.loads((folder / "run.json").read_text())
        return {key: content[key] for key in ("identity", "configuration", "corpus", "environment", "summary")}
    except OSError as error:
        raise RunError(f"{folder} holds no finished record: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'run.json'} is damaged: {error}") from error


def find_records(folder: str | Path) -> list[Path]:
    """Return the folders of finished records in and below `folder`, sorted. Raises RunError when there is none."""
    folders = sorted(path.parent for path in Path(folder).rglob("run.json") if is_recorded(path.parent))
    if not folders:
        raise RunError(f"{folder} holds no finished record")
    return folders


def read_records(folder: str | Path) -> pd.DataFrame:
    """Return one row per evaluation of every finished record below `folder`: run, its configuration, its metrics.

    An entry that the configuration gained later has the value of ADDED. Losses and entropies are nats, `tokens` counts
    training tokens. Raises RunError for none or a damaged record.
    """
    tables = []
    for path in find_records(folder):
        columns = _run_columns(read_run(path))
        try:
            metrics = pd.read_csv(path / "metrics.csv")
        except (ValueError, OSError) as error:
            raise RunError(f"{path / 'metrics.csv'} is damaged: {error}") from error
        clash = sorted(set(columns) & set(metrics.columns))
        if clash:
            raise RunError(f"{path / 'metrics.csv'} is damaged: columns {clash} belong to run.json")
        tables.append(pd.concat([pd.DataFrame([columns] * len(metrics)), metrics], axis=1))
    return pd.concat(tables, ignore_index=True)


def read_runs(folder: str | Path) -> pd.DataFrame:
    """Return one row per finished record below `folder`: run, configuration, and summary at the best checkpoint."""
    runs = [read_run(path) for path in find_records(folder)]
    return pd.DataFrame([_run_columns(run) | run["summary"] for run in runs])


def read_arrays(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of one record's spectrum.npz. Raises RunError when it is missing or damaged."""
    try:
        with np.load(folder / "spectrum.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{folder / 'spectrum.npz'} cannot be read: {error}") from error


def environment() -> dict[str, Any]:
    """Return what a run is made with: code revision, package versions, Python, processor."""
    versions = {name: version(name) for name in PACKAGES}
    return versions | {"python": platform.python_version(), "processor": processor(), "revision": _revision()}


def _run_columns(run: Mapping[str, Any]) -> dict[str, Any]:
    corpus = {f"corpus_{key}" if key != "name" else "corpus": value for key, value in run["corpus"].items()}
    settings: dict[str, Any] = run["configuration"]
    return {"run": run["identity"]} | settings | {k: v for k, v in ADDED.items() if k not in settings} | corpus


def _revision() -> str:
    """Return the git revision of the code, with "+" when it was changed since; $QKREPRO_REVISION outside a checkout."""
    if given := os.environ.get("QKREPRO_REVISION"):
        return given
    here = Path(__file__).parents[1]  # the package
    head = git(here, "rev-parse", "HEAD")
    changed = git(here, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return head + "+" * bool(changed) if head else "unknown"


def processor() -> str:
    """Return the name of the processor, and the settings that change which of its instructions are used."""
    settings = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS if name in os.environ]
    return ", ".join([_model_name(), *settings])


def _model_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
