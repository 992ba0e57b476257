"""What counts as the same on two processors, and that anything else is seen."""

import copy
import json
from pathlib import Path

import nbformat
import pytest
from agreeing_outputs import COSTS, compare_outputs, outputs_difference
from agreement import EXACT, RULES, Rule, numbers_differences, rule_for, table_differences, tables_of, text_difference
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qkrepro.publishing.notebooks import read_notebook

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CHAPTERS = sorted(path.stem for path in (NOTEBOOKS / "numbers").glob("*.json"))


def _tables(chapter: str):
    return tables_of(NOTEBOOKS / "numbers" / f"{chapter}.json")


def _number(tables, chapter: str):
    """Place of a chapter's largest floating-point number, in a table of several rows, with a rule of its own if any."""
    several = [name for name, table in tables.items() if max(map(len, table.values())) > 1]
    named = [name for name in several if name in RULES.get(chapter, {})] or several
    places = [
        (abs(value), name, column, row)
        for name in named
        for column, values in tables[name].items()
        for row, value in enumerate(values)
        if isinstance(value, float)
    ]
    return max(places)[1:]


def test_every_rule_names_a_table_that_is_saved():
    named = [(chapter, table) for chapter, rules in RULES.items() for table in rules]
    assert named
    assert [(chapter, table) for chapter, table in named if table not in _tables(chapter)] == []


def test_every_small_training_has_a_rule_of_its_own():
    live = [(chapter, table) for chapter in CHAPTERS for table in _tables(chapter) if table.startswith("live")]
    assert len(live) > 5
    assert [each for each in live if rule_for(*each) is EXACT] == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_committed_numbers_agree_with_themselves_and_a_number_beyond_its_band_is_seen(chapter):
    old = _tables(chapter)
    assert numbers_differences(chapter, old, old) == []
    name, column, row = _number(old, chapter)
    rule, new = rule_for(chapter, name), copy.deepcopy(old)
    new[name][column][row] *= 1 + rule.relative / 2
    assert [line for line in numbers_differences(chapter, new, old) if "does not fall" not in line] == []
    new[name][column][row] *= 1 + 2 * rule.relative
    (found,) = (line for line in numbers_differences(chapter, new, old) if "does not fall" not in line)
    assert f"{name}.{column}[{row}] is " in found
    assert f"instead of {old[name][column][row]!r}; tolerance" in found


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_two_rows_that_change_places_are_seen(chapter):
    old = _tables(chapter)
    name = _number(old, chapter)[0]
    first = [column[0] for column in old[name].values()]
    other = next(row for row in range(1, 10_000) if [column[row] for column in old[name].values()] != first)
    new = copy.deepcopy(old)
    for column in new[name].values():
        column[0], column[other] = column[other], column[0]
    assert numbers_differences(chapter, new, old)


@pytest.mark.parametrize("change", ["column", "row", "table", "type"])
def test_another_shape_or_kind_is_seen(change):
    old = {"t": {"a": [1.0, 2.0], "n": [1, 2]}}
    new = copy.deepcopy(old)
    if change == "column":
        new["t"]["b"] = new["t"].pop("a")
    elif change == "row":
        new["t"]["a"].append(3.0)
    elif change == "table":
        new["u"] = {"a": [1.0]}
    else:
        new["t"]["n"][0] = True
    assert numbers_differences("chapter", old, old) == []
    assert numbers_differences("chapter", new, old)


def test_a_loss_that_does_not_fall_is_seen_whatever_the_band():
    rule = Rule(10.0, 10.0, "wide", falls="loss", within=("kappa",))
    old = {"kappa": [0, 0, 1, 1], "loss": [3.0, 2.0, 3.0, 2.5]}
    assert list(table_differences("t", old, old, rule)) == []
    (found,) = table_differences("t", old | {"loss": [3.0, 2.0, 3.0, 3.0]}, old, rule)
    assert "('kappa',) = (1,) does not fall" in found


@pytest.mark.parametrize(
    ("new", "old", "same"),
    [
        ("index 0.476 [0.1, 0.2]", "index 0.477 [0.1, 0.2]", True),
        ("index 0.475", "index 0.477", False),
        ("9.999  a", "10.000 a", True),
        ("65 of 72 heads", "64 of 72 heads", False),
        ("error 1.2e-05", "error 1.3e-05", True),
        ("error 1.2e-05", "error 1.2e-04", False),
        ("index 0.476", "centre 0.476", False),
        ("low -0.01", "low 0.01", False),
        ("low −0.01", "low 0.00", True),
        ("33,278 words", "33,279 words", False),
        ("a  1.0\n", "a 1.0", True),
    ],
)
def test_a_printed_number_may_differ_by_one_in_its_last_digit(new, old, same):
    assert (text_difference(new, old) is None) is same


def test_outputs_of_another_kind_and_count_are_seen():
    table = new_output("execute_result", data={"text/plain": "0.5"})
    text = new_output("stream", name="stdout", text="0.5")
    assert outputs_difference([table], [table]) is None
    assert outputs_difference([text], [table])
    assert outputs_difference([table, table], [table])


@pytest.mark.slow
def test_a_cell_that_prints_something_else_or_breaks_fails_by_name(pytester: pytest.Pytester, monkeypatch):
    monkeypatch.setenv("QKREPRO_NUMBERS", str(pytester.path))
    cells = [new_markdown_cell("# Title"), new_code_cell("print('0.50')"), new_code_cell("print('a')")]
    for cell, text in zip(cells[1:], ("0.50", "a"), strict=True):
        cell.outputs, cell.execution_count = [new_output("stream", name="stdout", text=text + "\n")], 1
    folder = Path(__file__).parents[1]

    def outcome(change) -> object:
        notebook = new_notebook(cells=copy.deepcopy(cells))
        notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
        change(notebook)
        nbformat.write(notebook, pytester.path / "chapter.ipynb")
        arguments = ["--nbval", "--nbval-current-env", "-p", "agreeing_outputs", "chapter.ipynb"]
        return pytester.runpytest_subprocess(*arguments)

    pytester.makeini(f"[pytest]\npythonpath = {folder} {folder.parent}")
    outcome(lambda notebook: None).assert_outcomes(passed=2)
    cost = json.loads((pytester.path / COSTS / "chapter.json").read_text())
    assert cost["cpu_s"] > 0
    assert 10 < cost["peak_mb"] < 1500
    changed = outcome(lambda notebook: notebook.cells[1].update(source="print('0.53')"))
    changed.assert_outcomes(passed=1, failed=1)
    changed.stdout.fnmatch_lines(["*chapter.ipynb, cell 0: 0.53 instead of 0.50; tolerance 0.01*"])
    changed.stdout.fnmatch_lines(["*processor here: *; of the record: *"])
    broken = outcome(lambda notebook: notebook.cells[2].update(source="raise ValueError('no')"))
    broken.assert_outcomes(passed=1, failed=1)


def test_nbval_compares_as_agreement_says():
    from nbval.plugin import IPyNbCell

    assert IPyNbCell.compare_outputs is compare_outputs


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_nothing_committed_has_a_negative_zero_or_more_digits_than_processors_agree_on(chapter):
    text = (NOTEBOOKS / "numbers" / f"{chapter}.json").read_text(encoding="utf-8")
    values = json.loads(text, parse_float=lambda number: number)["tables"]
    numbers = [v for table in values.values() for column in table.values() for v in column if isinstance(v, str)]
    numbers = [number for number in numbers if number.replace(".", "").replace("-", "").replace("e", "").isdigit()]
    assert numbers
    assert [number for number in numbers if number.startswith("-") and float(number) == 0] == []
    assert [number for number in numbers if len(number.partition("e")[0].strip("-0.").replace(".", "")) > 8] == []
    outputs = [
        output for cell in read_notebook(NOTEBOOKS / f"{chapter}.ipynb").cells for output in cell.get("outputs", [])
    ]
    texts = [str(output.get("text", "")) for output in outputs]
    texts += [str(value) for output in outputs for kind, value in output.get("data", {}).items() if "text" in kind]
    assert texts
    assert [text for text in texts if "-0.0 " in f"{text} " or "(-0)" in text] == []
