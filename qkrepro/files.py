"""Files written whole or not at all, and what git knows of a checkout."""

import os
import threading
from pathlib import Path

from qkrepro.errors import RunError


def write_atomically(path: Path, raw: bytes) -> None:
    """Write a file whole or not at all: a temporary neighbour, then os.replace.

    Raises RunError when the folder cannot be written or the disk is full; the old file then stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def remove_abandoned(folder: Path) -> None:
    """Remove what a killed process left of a file it was writing. Call only while holding the folder lock."""
    for path in folder.glob(".*.[0-9]*.[0-9]*"):
        path.unlink(missing_ok=True)


def git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints in a folder; empty when it fails, or where there is no git or no checkout."""
    import subprocess  # not every program that writes a file starts another

    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
