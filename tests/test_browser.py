"""The built site in a real browser: equations, figures, no error, no other host; light and dark, phone and desk.

Needs chromium (Debian: apt install chromium). Where it is missing these tests are skipped, but fail when CI is set.
"""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator

import pytest
from checkout_copy import Copy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
VIEWS = [(width, scheme) for width in (400, 1400) for scheme in ("light", "dark")]
READY = "window.MathJax ? MathJax.startup.promise.then(() => true) : true"
LOOK = """() => ({
  theme: document.documentElement.dataset.theme,
  width: document.documentElement.scrollWidth,
  raw: document.querySelectorAll('.math').length - document.querySelectorAll('.math mjx-container').length,
  faults: document.querySelectorAll('mjx-merror, [data-mml-node="merror"], [data-mjx-error]').length,
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth && i.checkVisibility()).map(i => i.src),
  dimmed: [...document.querySelectorAll('.cell_output img')].filter(i => getComputedStyle(i).filter != 'none').length,
})"""

if not CHROMIUM and not os.environ.get("CI"):
    pytest.skip("chromium is not installed: the site was not tried in a browser", allow_module_level=True)

pytestmark = pytest.mark.slow


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(built: Copy) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(built.root / "_build" / "html"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def pages(built: Copy) -> list[str]:
    site = built.root / "_build" / "html"
    found = sorted(path for folder in ("book", "notebooks") for path in (site / folder).glob("*.html"))
    return [path.relative_to(site).as_posix() for path in found]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    assert CHROMIUM, "chromium is not installed; on Debian: apt install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_every_page_shows_its_equations_and_figures_without_errors_or_other_hosts(
    address: str, pages: list[str], browser: object, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, problems, equations = context.new_page(), [], 0
    page.on("console", lambda message: problems.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("request", lambda request: None if _here(request.url, address) else problems.append(f"asks {request.url}"))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
    found = []
    for name in pages:
        page.goto(f"{address}/{name}")
        page.evaluate(READY)
        seen = page.evaluate(LOOK)
        equations += page.locator("mjx-container").count()
        problems += [f"{seen[fault]} {fault}" for fault in ("raw", "faults", "dimmed") if seen[fault]]
        problems += [f"no picture {url}" for url in seen["broken"]]
        problems += [f"theme {seen['theme']}"] * (seen["theme"] != scheme) + [f"{seen['width']} wide"] * (
            seen["width"] > width
        )
        found += [f"{name}: {problem}" for problem in problems]
        problems.clear()
    context.close()
    assert not found
    assert equations > 300


def test_search_finds_rank_collapse(address: str, browser: object) -> None:
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=rank+collapse")
    page.locator("ul.search li a").first.wait_for(timeout=20_000)
    assert page.locator("ul.search li a", has_text="Rank collapse").count() >= 1
    page.close()


def test_the_front_page_leads_to_a_chapter_by_keyboard_alone(address: str, browser: object) -> None:
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    page.wait_for_url("**/book/intro.html")
    for _ in range(60):
        page.keyboard.press("Tab")
        if "notebooks/" in (page.evaluate("document.activeElement.getAttribute('href')") or ""):
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/notebooks/*.html")
    page.close()


def _here(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:", "about:"))
