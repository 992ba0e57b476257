"""Open a chapter in JupyterLab, Run All, done: in a real headless browser, on a fresh copy."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from browsing import is_here, running_browser, skip_without_chromium
from checkout_copy import Copy

from qkrepro.errors import NotebookError
from qkrepro.notebooks import read_notebook, with_parameters, write_notebook

CHAPTER = "01_softmax_linearisation"
SECONDS = 240  # for the kernel, its imports and all cells

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * SECONDS)]
skip_without_chromium()


@contextmanager
def _laboratory(copy: Copy) -> Iterator[str]:
    """Address of a JupyterLab of its own in the copy: no token, no settings of the user's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    private = copy.root / "_build" / "jupyter"
    environment = os.environ | {"PYTHONPATH": str(copy.root), "JUPYTER_CONFIG_DIR": str(private)}
    environment |= {"JUPYTER_DATA_DIR": str(private), "JUPYTERLAB_SETTINGS_DIR": str(private), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.news_url=None"]
    address = f"http://127.0.0.1:{port}"
    with (copy.root / "laboratory.log").open("w") as log:
        server = subprocess.Popen(command, cwd=copy.root, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(f"{address}/api", server, copy.root / "laboratory.log")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_until_it_answers(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        assert server.poll() is None, log.read_text()[-2000:]
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab does not answer after {SECONDS} s: {log.read_text()[-2000:]}")


def test_a_chapter_opens_in_jupyterlab_and_runs_to_its_end(copy: Copy) -> None:
    path = copy.root / "notebooks" / f"{CHAPTER}.ipynb"
    smoke = yaml.safe_load((copy.root / "notebooks" / "profiles" / "smoke.yaml").read_text(encoding="utf-8"))
    notebook = with_parameters(read_notebook(path), {"profile": "smoke"} | smoke[CHAPTER]["parameters"])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    write_notebook(notebook, path)
    elsewhere: list[str] = []
    with _laboratory(copy) as address, running_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(SECONDS * 1000)
        page.on("request", lambda request: is_here(request.url, address) or elsewhere.append(request.url))
        page.goto(f"{address}/lab/tree/notebooks/{CHAPTER}.ipynb", wait_until="domcontentloaded")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.locator(
            ".jp-NotebookPanel .jp-Toolbar-kernelStatus, .jp-NotebookPanel .jp-Notebook-ExecutionIndicator"
        ).first.wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        _wait_until_all_cells_ran(path, page)
    ran = [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    outputs = [output for cell in ran for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert elsewhere == []


def _wait_until_all_cells_ran(path: Path, page: object) -> None:
    """Save again and again until the last cell has run: what counts is the file that a reader would keep."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        page.wait_for_timeout(2000)
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        with suppress(NotebookError):  # it is being written
            cells = [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]
            failed = any(output.output_type == "error" for cell in cells for output in cell.outputs)
            if failed or all(cell.execution_count for cell in cells):
                return
