"""What the page says of two executions follows from their digests; a changed output is not called repeated."""

import json
from pathlib import Path

import pandas as pd
import pytest
from checkout_copy import Copy

from qkrepro.publishing.notebooks import read_notebook, write_notebook
from qkrepro.publishing.repetition import COLUMNS, KEPT, output_digests, repetition_page

NAME = "softmax_linearisation"


def _digests(copy: Copy) -> list[str]:
    numbers = copy.root / "notebooks" / "numbers" / f"{NAME}.json"
    return list(output_digests(read_notebook(copy.root / "notebooks" / f"{NAME}.ipynb"), numbers))


def _keep(copy: Copy, again: list[str]) -> None:
    pairs = zip(_digests(copy), again, strict=True)
    row = [NAME, *(digest for pair in pairs for digest in pair), "here"]
    pd.DataFrame([row], columns=COLUMNS).to_csv(copy.root / KEPT, index=False)


def _row(copy: Copy) -> list[str]:
    (line,) = (line for line in repetition_page(copy.root).splitlines() if NAME in line)
    return [part.strip() for part in line.split("|")[2:-1]]


def test_equal_digests_are_called_the_same_and_others_different(copy: Copy) -> None:
    _keep(copy, _digests(copy))
    assert _row(copy) == ["the same"] * 3
    _keep(copy, ["0" * 16, *_digests(copy)[1:]])
    assert _row(copy) == ["**different**", "the same", "the same"]


@pytest.mark.parametrize("what", ["text", "picture", "numbers"])
def test_outputs_that_changed_since_are_not_repeated(copy: Copy, what: str) -> None:
    _keep(copy, _digests(copy))
    path = copy.root / "notebooks" / f"{NAME}.ipynb"
    notebook = read_notebook(path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if what == "text":
        next(output for output in outputs if "text/plain" in output.get("data", {})).data["text/plain"] += "1"
    elif what == "picture":
        next(output for output in outputs if "image/png" in output.get("data", {})).data["image/png"] = "AA=="
    else:
        numbers = copy.root / "notebooks" / "numbers" / f"{NAME}.json"
        numbers.write_text(json.dumps(json.loads(numbers.read_text()) | {"more": 1}))
    write_notebook(notebook, path)
    assert _row(copy)[0] == "not repeated since it was executed"


def test_a_book_that_was_never_repeated_says_so(copy: Copy) -> None:
    Path(copy.root / KEPT).unlink(missing_ok=True)
    assert _row(copy)[0] == "not repeated since it was executed"
