"""Files written whole or not at all."""

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
