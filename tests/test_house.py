"""The rooms of the package: imports run downward, chapters know nothing of each other, records stay valid."""

import re
import tomllib
from pathlib import Path

import grimp
import pandas as pd
from importlinter import cli as import_linter

from qkrepro.evidence.numbers import book_root
from qkrepro.publishing.claims_pages import STORED, all_claims, verdicts
from qkrepro.training.records import find_records, read_arrays, read_records, read_run, run_identity

ROOT = Path(__file__).parents[1]
SCREEN = 50  # lines
ROOMS = ("cli", "publishing", "chapters", "evidence", "training", "models", "theory", "files", "errors")


def test_imports_hold_to_the_contracts_of_pyproject(capsys):
    assert import_linter.lint_imports(str(ROOT / "pyproject.toml"), no_cache=True) == 0, capsys.readouterr().out


def test_every_module_stands_in_a_room_and_no_import_runs_upward():
    graph = grimp.build_graph("qkrepro", cache_dir=None)
    modules = graph.modules - {"qkrepro"}
    assert {name.split(".")[1] for name in modules} == set(ROOMS)
    arrows = [
        (importer, imported)
        for importer in modules
        for imported in graph.find_modules_directly_imported_by(importer) & modules
    ]
    assert len(arrows) > 200
    height = {room: -place for place, room in enumerate(ROOMS)}
    upward = [
        (importer, imported)
        for importer, imported in arrows
        if height[importer.split(".")[1]] < height[imported.split(".")[1]]
    ]
    assert upward == []


def test_every_claim_stands_in_the_module_of_its_chapter_and_names_are_used_once():
    names = [claim.name for claim in all_claims()]
    assert len(names) == len(set(names)) > 20
    for claim in all_claims():
        assert claim.judge.__module__ == f"qkrepro.chapters.{claim.chapter}", claim.name


def test_every_committed_record_is_read_and_its_identity_follows_from_its_configuration_and_corpus():
    folders = find_records(ROOT / "results")
    assert len(folders) > 50
    for folder in folders:
        run = read_run(folder)
        assert run["identity"] == run_identity(run["configuration"] | {"corpus": run["corpus"]}), folder
        assert folder.name.endswith(run["identity"])
        assert len(read_arrays(folder)["update"]) == len(pd.read_csv(folder / "metrics.csv"))
    assert read_records(ROOT / "results")["run"].nunique() <= len(folders)


def test_every_claim_is_judged_as_it_was_stored():
    shown = ["claim", "outcome", "because"]
    stored, table = pd.read_csv(book_root() / "book" / "generated" / STORED, dtype=str)[shown], verdicts()[shown]
    assert len(table) == len(stored) > 0
    pd.testing.assert_frame_equal(table.astype(str).reset_index(drop=True), stored, check_dtype=False)


def test_the_arrows_of_the_architecture_are_the_imports_between_rooms():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = {room: set(below.split()) for room, below in re.findall(r"^│ +(\w+) +│(?:──▶ (.+))?$", text, re.MULTILINE)}
    graph = grimp.build_graph("qkrepro", cache_dir=None)
    imported = {room: set() for room in ROOMS}
    for module in graph.modules - {"qkrepro"}:
        room = module.split(".")[1]
        for name in graph.find_modules_directly_imported_by(module) - {"qkrepro"}:
            imported[room] |= {name.split(".")[1]} - {room}
    assert list(drawn) == list(ROOMS)
    assert drawn == imported
    assert text.count("\n") <= SCREEN


def test_the_architecture_and_the_contracts_name_the_same_rooms():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    assert contracts[0]["layers"] == list(ROOMS)
