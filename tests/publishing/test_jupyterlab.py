"""Open a chapter in JupyterLab, Run All, done: in a real headless browser, on a fresh copy."""

import pytest
import yaml
from browsing import is_here, running_browser, skip_without_chromium
from checkout_copy import Copy
from laboratory import SECONDS, laboratory, open_chapter, run_all_cells, wait_until_all_cells_ran

from qkrepro.publishing.notebooks import read_notebook, with_parameters, write_notebook

CHAPTER = "01_softmax_linearisation"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * SECONDS)]
skip_without_chromium()


def test_a_chapter_opens_in_jupyterlab_and_runs_to_its_end(copy: Copy) -> None:
    path = copy.root / "notebooks" / f"{CHAPTER}.ipynb"
    smoke = yaml.safe_load((copy.root / "notebooks" / "profiles" / "smoke.yaml").read_text(encoding="utf-8"))
    notebook = with_parameters(read_notebook(path), {"profile": "smoke"} | smoke[CHAPTER])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    write_notebook(notebook, path)
    elsewhere: list[str] = []
    with laboratory(copy) as (address, _), running_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.on("request", lambda request: is_here(request.url, address) or elsewhere.append(request.url))
        open_chapter(page, address, CHAPTER)
        run_all_cells(page)
        wait_until_all_cells_ran(path, page)
    ran = [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    outputs = [output for cell in ran for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert elsewhere == []
