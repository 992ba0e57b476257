"""The built site in a real browser: equations, figures, no error, no other host; light and dark, phone and desk.

Needs chromium (Debian: apt install chromium). Where it is missing these tests are skipped, but fail when CI is set.
"""

from collections.abc import Iterator
from importlib.metadata import distribution

import pytest
import torch
from browsing import READY, is_here, running_browser, served, skip_without_chromium
from checkout_copy import Copy

from qkrepro.publishing.interactive import KNOBS, LOCATIONS, ROWS
from qkrepro.theory.propagation import signal_propagation_limit

VIEWS = [(width, scheme) for width in (400, 1400) for scheme in ("light", "dark")]
LOOK = """() => ({
  theme: document.documentElement.dataset.theme,
  width: document.documentElement.scrollWidth,
  raw: document.querySelectorAll('.math').length - document.querySelectorAll('.math mjx-container').length,
  faults: document.querySelectorAll('mjx-merror, [data-mml-node="merror"], [data-mjx-error]').length,
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth && i.checkVisibility()).map(i => i.src),
  dimmed: [...document.querySelectorAll('.cell_output img')].filter(i => getComputedStyle(i).filter != 'none').length,
})"""

CHECK = """async () => (await axe.run({exclude: [["mjx-container"]]}, {resultTypes: ["violations"]})).violations
  .filter(each => ["serious", "critical"].includes(each.impact))
  .map(each => `${each.id}: ${each.nodes.map(node => node.html.slice(0, 150)).join(" ")}`)"""
CHECKED = ["intro", "interactive", "claims", "provenance", "setting", "glossary", "your_model"]

skip_without_chromium()
pytestmark = pytest.mark.slow


def is_fault(request: object) -> bool:
    """Whether a request failed by itself; one that is cut off because the next page is opened did not."""
    return "ERR_ABORTED" not in (request.failure or "")


@pytest.fixture(scope="module")
def address(built: Copy) -> Iterator[str]:
    with served(built.root / "_build" / "html") as where:
        yield where


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def pages(built: Copy) -> list[str]:
    site = built.root / "_build" / "html"
    found = sorted(path for folder in ("book", "notebooks") for path in (site / folder).glob("*.html"))
    return [path.relative_to(site).as_posix() for path in found]


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_every_page_shows_its_equations_and_figures_without_errors_or_other_hosts(
    address: str, pages: list[str], browser: object, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, problems, equations = context.new_page(), [], 0
    page.on("console", lambda message: problems.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on(
        "request", lambda request: None if is_here(request.url, address) else problems.append(f"asks {request.url}")
    )
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}") if is_fault(request) else None)
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


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_an_accessibility_checker_finds_nothing_serious(address: str, browser: object, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    checker = str(distribution("axe-playwright-python").locate_file("axe_playwright_python/axe.min.js"))
    names = [f"book/{name}.html" for name in CHECKED] + ["notebooks/03_signal_propagation.html", "search.html"]
    found = {}
    for name in names:
        page.goto(f"{address}/{name}")
        page.evaluate(READY)
        page.add_script_tag(path=checker)
        found[name] = page.evaluate(CHECK)
    context.close()
    assert {name: violations for name, violations in found.items() if violations} == {}


def test_the_knobs_answer_to_the_keyboard_with_the_values_of_the_package(address: str, browser: object) -> None:
    page = browser.new_page()
    page.goto(f"{address}/book/interactive.html")
    page.wait_for_function("window.rhoView && document.querySelector('#rho-summary').textContent")
    for knob in KNOBS:
        before = page.locator(".rho").inner_text()
        page.locator(f"#rho-{knob.name}").focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        assert page.locator(".rho").inner_text() != before, knob.name
        assert page.locator(f"#rho-{knob.name}").get_attribute("aria-valuetext")
    values = {knob.name: float(page.locator(f"#rho-{knob.name}").input_value()) for knob in KNOBS}
    drawn = page.evaluate(f"rhoView.data('{ROWS}').map(row => row.rho)")
    dim, theta = 2 ** values["log_dim"], torch.arange(1, LOCATIONS + 1, dtype=torch.float64) / LOCATIONS
    expected = signal_propagation_limit(
        theta,
        dim * values["mean"],
        dim * (values["mean"] ** 2 + 10 ** values["log_variance"]),
        temperature=10 ** values["log_temperature"],
        length=int(2 ** values["log_length"]),
    )
    torch.testing.assert_close(torch.tensor(drawn, dtype=torch.float64), expected, atol=1e-9, rtol=1e-6)
    shown = [float(cell) for cell in page.locator(".rho-values td").all_inner_texts()]
    assert shown == [
        round(drawn[int(step) - 1], 3)
        for step in page.locator(".rho-values td").evaluate_all("cells => cells.map(cell => cell.dataset.step)")
    ]
    page.close()


def test_a_case_button_moves_the_curve_and_says_what_it_shows(address: str, browser: object) -> None:
    page = browser.new_page()
    page.goto(f"{address}/book/interactive.html")
    page.wait_for_function("window.rhoView && document.querySelector('#rho-summary').textContent")
    curve = "document.querySelector('#rho-chart .mark-line path, #rho-chart .layer_1_layer_1_marks path')"
    before = page.evaluate(f"{curve}.getAttribute('d')")
    page.locator("button", has_text="broad").click()
    assert "no site is shut out" in page.locator("#rho-summary").inner_text()
    assert page.evaluate(f"{curve}.getAttribute('d')") != before
    page.close()


def test_print_has_the_text_the_figures_and_the_proofs_and_no_furniture(address: str, browser: object) -> None:
    page = browser.new_page(viewport={"width": 700, "height": 900})
    page.goto(f"{address}/book/theory_propagation.html", wait_until="domcontentloaded")
    page.emulate_media(media="print")
    for furniture in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", ".prev-next-footer"):
        assert not page.locator(furniture).first.is_visible(), furniture
    hidden = "proofs => proofs.filter(proof => !proof.querySelector('p').checkVisibility()).length"
    assert page.locator("details.sd-dropdown").count() > 5
    assert page.locator("details.sd-dropdown").evaluate_all(hidden) == 0
    page.goto(f"{address}/notebooks/03_signal_propagation.html")
    widths = page.locator("figure img").evaluate_all("all => all.map(image => image.getBoundingClientRect().width)")
    assert widths
    assert max(widths) <= 700
    page.close()
