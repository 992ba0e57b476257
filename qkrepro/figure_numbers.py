"""The numbers behind the figures: one JSON file a chapter, written by its notebook, read by verdicts and tests."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from qkrepro.errors import ArgumentError

COMMITTED_PROFILE = "quick"
FOLDER_VARIABLE = "QKREPRO_NUMBERS"


def book_root() -> Path:
    """Folder of the book: the nearest one from the working directory upwards with `_toc.yml` and `notebooks/`."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise ArgumentError(f"working directory is {here}; allowed: a folder inside a checkout of the book (with _toc.yml)")


def numbers_folder(profile: str = COMMITTED_PROFILE) -> Path:
    """Folder of the numbers of a profile: `notebooks/numbers` for `quick`, `_build/<profile>/numbers` for others.

    The variable QKREPRO_NUMBERS names another folder: tests use it to keep a re-execution apart from what is committed.
    """
    if os.environ.get(FOLDER_VARIABLE):
        return Path(os.environ[FOLDER_VARIABLE])
    if profile == COMMITTED_PROFILE:
        return book_root() / "notebooks" / "numbers"
    return book_root() / "_build" / profile / "numbers"


def save_numbers(chapter: str, profile: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write the tables of a chapter, named as in its verdict rules, as `<chapter>.json` in the profile's folder.

    Tables are tidy: one row an observation, plain columns (numbers, strings, booleans); the index is dropped. Values
    keep 12 significant digits. The file appears whole or not at all.
    """
    content = {"chapter": chapter, "profile": profile, "tables": {name: _columns(t) for name, t in tables.items()}}
    target = numbers_folder(profile) / f"{chapter}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=0, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, target)


def load_numbers(chapter: str, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Tables of a chapter, by name; of the committed profile unless `folder` says otherwise.

    Raises ArgumentError when the chapter has no saved numbers or the file is damaged.
    """
    path = (folder or numbers_folder()) / f"{chapter}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: pd.DataFrame(columns) for name, columns in content["tables"].items()}
    except FileNotFoundError as error:
        raise ArgumentError(f"chapter is {chapter!r}; it has no saved numbers in {path.parent}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(f"{path} is damaged ({error}); allowed: a file written by save_numbers") from error


def _columns(table: pd.DataFrame) -> dict[str, list[object]]:
    return {str(name): [_plain(value) for value in table[name].tolist()] for name in table.columns}


def _plain(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.12g}") if value == value and abs(value) != float("inf") else None
    return value
