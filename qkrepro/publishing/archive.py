"""All records in one archive, with a digest of every file: ready for a repository that gives DOIs.

The archive depends on the contents of the files alone: sorted names, one fixed date, stored and not compressed, so that
equal records give equal bytes on every machine.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qkrepro import __version__
from qkrepro.errors import RunError
from qkrepro.files import write_atomically
from qkrepro.publishing.provenance import record_origins
from qkrepro.training.records import RECORD_FILES, is_recorded

BESIDE = (
    *("results/*.md", "results/*.yaml", "notebooks/numbers/*.json", "notebooks/profiles/*.yaml"),
    *("book/generated/verdicts.csv", "CITATION.cff", "LICENSE-text"),
)
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a ZIP archive knows


@dataclass(frozen=True)
class Archive:
    """What was written: the file, its SHA-256, how many records it holds, and the folders left out as unfinished."""

    path: Path
    digest: str
    records: int
    unfinished: tuple[str, ...]


def write_archive(root: Path, path: Path | None = None) -> Archive:
    """Write the archive of a checkout's records; default `_build/qkrepro-records-VERSION.zip`.

    Beside the records: sweep files, the numbers behind the figures, profiles, verdicts, `records.csv` (one row a
    record: command, revision, corpus digest) and `SHA256SUMS`, which `sha256sum -c` checks. Raises RunError when there
    is no finished record, when one is damaged, or when the file cannot be written.
    """
    name = f"qkrepro-records-{__version__}"
    target = path or root / "_build" / f"{name}.zip"
    records = record_origins(root)
    if not records:
        raise RunError(f"{root / 'results'} holds no finished record")
    content = {file: (root / file).read_bytes() for file in archived_files(root)}
    content["records.csv"] = pd.DataFrame(records).to_csv(index=False, lineterminator="\n").encode()
    sums = "".join(f"{hashlib.sha256(raw).hexdigest()}  {file}\n" for file, raw in sorted(content.items()))
    content["SHA256SUMS"] = sums.encode()
    raw = _zip({f"{name}/{file}": raw for file, raw in content.items()})
    write_atomically(target, raw)
    return Archive(target, hashlib.sha256(raw).hexdigest(), len(records), tuple(unfinished(root)))


def archived_files(root: Path) -> list[str]:
    """Return the files of the checkout that go into the archive, relative to it, sorted."""
    folders = [path.parent for path in (root / "results").rglob("run.json") if is_recorded(path.parent)]
    paths = [folder / name for folder in folders for name in RECORD_FILES]
    paths += [path for pattern in BESIDE for path in root.glob(pattern)]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def unfinished(root: Path) -> list[str]:
    """Return the folders below `results/` with a part of a record, left by a run that was stopped while it wrote."""
    folders = {path.parent for name in RECORD_FILES for path in (root / "results").rglob(name)}
    return sorted(folder.relative_to(root).as_posix() for folder in folders if not is_recorded(folder))


def _zip(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in sorted(content.items()):
            entry = zipfile.ZipInfo(name, DATE)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Unix, everywhere
            archive.writestr(entry, raw)
    return buffer.getvalue()
