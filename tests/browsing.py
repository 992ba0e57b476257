"""Folders served on this machine, and the browser of the system that looks at them."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
READY = "window.MathJax ? MathJax.startup.promise.then(() => true) : true"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a server of the folder on this machine."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def skip_without_chromium() -> None:
    """Skip the test or module that calls it where chromium is missing; under CI=true it fails instead."""
    if not CHROMIUM and not os.environ.get("CI"):
        pytest.skip("chromium is not installed: nothing was tried in a browser", allow_module_level=True)


@contextmanager
def running_browser() -> Iterator[object]:
    """The browser of the system, without a window."""
    assert CHROMIUM, "chromium is not installed; on Debian: apt install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


def is_here(url: str, address: str) -> bool:
    """Whether a request stays on this machine."""
    return url.startswith((address, address.replace("http", "ws"), "data:", "blob:", "about:"))
