"""`qkrepro sweep`: every run of a sweep file that is not recorded yet, on Dask's workers.

A sweep file NAME.yaml has two mappings, `fixed` (entries of the run configuration) and `lists` (entry: list of values).
Its runs are the cross product of the lists, the last list varying fastest; their records lie in the folder NAME beside
it, their checkpoints in RUNS/NAME. Source: book, "Sweeps".
"""

from itertools import product
from pathlib import Path
from typing import Any

import yaml

from qkrepro.configuration import RunConfiguration, configuration_from
from qkrepro.errors import RunError
from qkrepro.results import copy_record, is_recorded
from qkrepro.training import train


def read_sweep(path: str | Path) -> list[RunConfiguration]:
    """Return the configurations of a sweep file in the order they are run, the last list varying fastest.

    Raises RunError for a file that is missing or of another form, ArgumentError for an entry that is not allowed.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not YAML: {error}") from error
    fixed, lists = _parts(path, content)
    return [configuration_from(fixed | dict(zip(lists, values, strict=True))) for values in product(*lists.values())]


def run_recorded(configuration: RunConfiguration, runs: Path, records: Path, data: str | Path | None = None) -> Path:
    """Train, unless its record is there, and copy the record to `records`; return its folder there.

    Raises as `train` does; Busy when another process is working on this run.
    """
    folder = train(configuration, runs, data=data, progress=False)
    target = records / folder.name
    if not is_recorded(target):
        copy_record(folder, target)
    return target


def _parts(path: str | Path, content: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    error = RunError(f"{path} is no sweep; allowed: `fixed`, a mapping, and `lists`, a mapping to non-empty lists")
    if not isinstance(content, dict) or not set(content) <= {"fixed", "lists"}:
        raise error
    fixed, lists = content.get("fixed") or {}, content.get("lists") or {}
    if not isinstance(fixed, dict) or not isinstance(lists, dict) or set(fixed) & set(lists):
        raise error
    if not all(isinstance(values, list) and values for values in lists.values()):
        raise error
    return fixed, lists
