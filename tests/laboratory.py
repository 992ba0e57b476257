"""A JupyterLab of its own in a copy of the checkout, opened on a chapter in a browser."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from checkout_copy import Copy

from qkrepro.errors import NotebookError
from qkrepro.publishing.notebooks import read_notebook

SECONDS = 240  # for the kernel, its imports and all cells


@contextmanager
def laboratory(
    copy: Copy, python: str = sys.executable, variables: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """Address and process number of a JupyterLab in the copy: no token, no settings of the user's.

    python, variables: of the environment it runs in; default this one, with the package of the copy.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    private = str(copy.root / "_build" / "jupyter")
    environment = dict(variables or os.environ | {"PYTHONPATH": str(copy.root)})
    environment |= {"JUPYTER_CONFIG_DIR": private, "JUPYTER_DATA_DIR": private, "JUPYTERLAB_SETTINGS_DIR": private}
    environment |= {"HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.news_url=None"]
    address = f"http://127.0.0.1:{port}"
    with (copy.root / "laboratory.log").open("w") as log:
        server = subprocess.Popen(command, cwd=copy.root, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(f"{address}/api", server, copy.root / "laboratory.log")
        yield address, server.pid
    finally:
        server.terminate()  # it ends its kernels first
        server.wait(timeout=SECONDS)


def open_chapter(page: object, address: str, chapter: str) -> None:
    """Open a chapter and wait until its first cells are there and the page is connected to an idle kernel.

    Before that, JupyterLab answers Run All Cells with a question: which kernel.
    """
    page.set_default_timeout(SECONDS * 1000)
    page.goto(f"{address}/lab/tree/notebooks/{chapter}.ipynb", wait_until="domcontentloaded")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    deadline = time.monotonic() + SECONDS
    while not _has_a_kernel(address):
        assert time.monotonic() < deadline, f"{chapter} has no kernel after {SECONDS} s"
        page.wait_for_timeout(200)


def run_all_cells(page: object) -> None:
    """Choose Run All Cells in the menu, and return when cells wait for their turn."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".jp-InputPrompt", has_text="[*]").first.wait_for()


def wait_until_all_cells_ran(path: Path, page: object) -> None:
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


def _has_a_kernel(address: str) -> bool:
    with urllib.request.urlopen(f"{address}/api/kernels", timeout=SECONDS) as answer:
        return any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in json.load(answer))


def _wait_until_it_answers(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        assert server.poll() is None, log.read_text()[-2000:]
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab does not answer after {SECONDS} s: {log.read_text()[-2000:]}")
