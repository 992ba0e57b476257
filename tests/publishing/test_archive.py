"""One archive of all records: equal records give equal bytes, and every file can be checked."""

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from checkout_copy import Copy

from qkrepro.errors import RunError
from qkrepro.publishing.archive import write_archive
from qkrepro.training.records import find_records


def _entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def test_two_archives_of_one_checkout_are_the_same_bytes_whatever_the_dates(copy: Copy, tmp_path: Path) -> None:
    first = write_archive(copy.root, tmp_path / "first.zip")
    for path in (copy.root / "results").rglob("*"):
        os.utime(path, (1e9, 1e9))
    second = write_archive(copy.root, tmp_path / "second.zip")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.digest == second.digest == hashlib.sha256(first.path.read_bytes()).hexdigest()


def test_it_holds_every_file_of_every_record_and_one_row_about_each(copy: Copy, tmp_path: Path) -> None:
    archive = write_archive(copy.root, tmp_path / "a.zip")
    entries, records = _entries(archive.path), find_records(copy.root / "results")
    for folder in records:
        for path in folder.iterdir():
            assert entries[path.relative_to(copy.root).as_posix()] == path.read_bytes()
    assert len(pd.read_csv(io.BytesIO(entries["records.csv"]))) == len(records) == archive.records


def test_the_usual_tool_finds_every_digest_right(copy: Copy, tmp_path: Path) -> None:
    archive = write_archive(copy.root, tmp_path / "a.zip")
    with zipfile.ZipFile(archive.path) as opened:
        opened.extractall(tmp_path)
    (folder,) = tmp_path.glob("qkrepro-records-*")
    listed = (folder / "SHA256SUMS").read_text().splitlines()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {line.split("  ")[1] for line in listed} == files - {"SHA256SUMS"}
    assert all(hashlib.sha256((folder / n).read_bytes()).hexdigest() == d for d, n in map(str.split, listed))


def test_an_unfinished_record_is_left_out_and_named_and_a_damaged_one_refused(copy: Copy, tmp_path: Path) -> None:
    first, second = find_records(copy.root / "results")[:2]
    (first / "run.json").unlink()
    archive = write_archive(copy.root, tmp_path / "a.zip")
    assert archive.unfinished == (first.relative_to(copy.root).as_posix(),)
    assert not [name for name in _entries(archive.path) if first.name in name and first.parent.name in name]
    (second / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        write_archive(copy.root, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_a_checkout_without_records_gives_no_archive(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished record"):
        write_archive(tmp_path, tmp_path / "a.zip")


def test_the_command_says_where_it_is_and_what_it_weighs(copy: Copy) -> None:
    done = copy.qkrepro("archive", "--out", "records.zip")
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256((copy.root / "records.zip").read_bytes()).hexdigest()
    assert digest in done.stdout
