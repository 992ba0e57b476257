"""The numbers behind the figures: one JSON file per chapter, written by its notebook, read by verdicts and tests."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from qkrepro.errors import ArgumentError
from qkrepro.evidence.rounding import significant
from qkrepro.files import write_atomically

COMMITTED_PROFILE = "quick"
FOLDER_VARIABLE = "QKREPRO_NUMBERS"  # where an execution by `qkrepro figures` or by a test keeps its numbers
INTERACTIVE = "_build/interactive/numbers"


def book_root() -> Path:
    """Return the book's folder: the nearest one from the working directory upwards with `_toc.yml` and `notebooks/`."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise ArgumentError(f"the working directory must lie in a checkout of the book (with _toc.yml), got {here}")


def numbers_folder(profile: str = COMMITTED_PROFILE) -> Path:
    """Return the folder of a profile's kept numbers, which `qkrepro figures` alone writes.

    It is `notebooks/numbers` for `quick`, `_build/<profile>/numbers` for others.
    """
    if profile == COMMITTED_PROFILE:
        return book_root() / "notebooks" / "numbers"
    return book_root() / "_build" / profile / "numbers"


def save_numbers(chapter: str, profile: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write the tables of a chapter, named as in its verdict rules, as `<chapter>.json`.

    Tables are tidy: one row per observation, plain columns (numbers, strings, booleans); the index is dropped. Values
    keep 8 significant digits. The file appears whole or not at all, in the folder that QKREPRO_NUMBERS names; without
    that variable somebody runs the notebook by hand, and the file goes to `_build/interactive/numbers`, where it
    replaces nothing that is committed.
    """
    content = {"chapter": chapter, "profile": profile, "tables": {name: _columns(t) for name, t in tables.items()}}
    given = os.environ.get(FOLDER_VARIABLE)
    folder = Path(given) if given else book_root() / INTERACTIVE
    write_atomically(folder / f"{chapter}.json", _encoded(content))


def stored(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the tables as they come back from a file: what a verdict is judged on, in a notebook as elsewhere."""
    return {name: pd.DataFrame(_columns(table)) for name, table in tables.items()}


def describe_execution(path: Path, parameters: Mapping[str, Any], processor: str) -> None:
    """Write into a file of numbers what its notebook ran with and where; a missing file stays missing."""
    if path.is_file():
        about = {"parameters": dict(parameters), "processor": processor}
        write_atomically(path, _encoded(json.loads(path.read_text(encoding="utf-8")) | about))


def changed_parameters(chapter: str) -> dict[str, tuple[Any, Any]]:
    """Return where the running notebook differs from the committed numbers: parameter, committed value, value now.

    Empty for an execution by `qkrepro figures` or a test, which sets the parameters itself, outside of a notebook, and
    for a chapter without committed numbers.
    """
    path = numbers_folder() / f"{chapter}.json"
    if os.environ.get(FOLDER_VARIABLE) or "IPython" not in sys.modules or not path.is_file():
        return {}
    shell = sys.modules["IPython"].get_ipython()
    values = shell.user_ns if shell else {}
    committed = json.loads(path.read_text(encoding="utf-8")).get("parameters", {})
    return {
        name: (value, values[name])
        for name, value in committed.items()
        if name in values and plain_value(values[name]) != plain_value(value)
    }


def load_numbers(chapter: str, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Return the tables of a chapter, by name; of the committed profile unless `folder` says otherwise.

    Raises ArgumentError when the chapter has no saved numbers or the file is damaged.
    """
    path = (folder or numbers_folder()) / f"{chapter}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: pd.DataFrame(columns) for name, columns in content["tables"].items()}
    except FileNotFoundError as error:
        raise ArgumentError(f"chapter is {chapter!r}; it has no saved numbers in {path.parent}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(f"{path} must be a file written by save_numbers, got a damaged one ({error})") from error


def plain_value(value: Any) -> Any:
    """Return tuples as lists, and a type beside each scalar, so that "1e-3" is not 0.001 and True is not 1."""
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else (type(value).__name__, value)


def _columns(table: pd.DataFrame) -> dict[str, list[object]]:
    return {str(name): [_plain(value) for value in table[name].tolist()] for name in table.columns}


def _plain(value: object) -> object:
    if isinstance(value, float):
        return significant(value) if value == value and abs(value) != float("inf") else None
    return value


def _encoded(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=0, allow_nan=False) + "\n").encode()
