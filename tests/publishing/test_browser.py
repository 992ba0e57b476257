"""The built site in a real browser: equations, figures, no error, no other host; light and dark, phone and desk.

Needs chromium (Debian: apt install chromium). Where it is missing these tests are skipped, but fail when CI is set.
"""

import math
import re
from collections.abc import Iterator
from importlib.metadata import distribution

import pytest
import torch
from browsing import READY, is_here, running_browser, served, skip_without_chromium
from checkout_copy import ROOT, Copy

from qkrepro.publishing.explorer_marks import cell_states
from qkrepro.publishing.explorer_values import VALUES, law_spectrum, read_values
from qkrepro.theory.attention import attention_logits, causal_mask, piecewise_linear_attention
from qkrepro.theory.depth import Spectrum, Stack, first_attention, layer_entropy
from qkrepro.theory.propagation import signal_propagation
from qkrepro.theory.spectrum import random_spectrum_matrix
from qkrepro.theory.tokens import TOKEN_LAWS

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
MOST_CODE, LEAST_FIGURES = 0.15, 0.30  # of the height of a chapter's article at 1,400 px
SHARES = """() => {
  const article = document.querySelector("article"), whole = article.getBoundingClientRect().height;
  const tall = (parts) => parts.filter((part) => part.checkVisibility({ contentVisibilityAuto: true }))
    .reduce((sum, part) => sum + part.getBoundingClientRect().height, 0) / whole;
  const code = [...article.querySelectorAll("div.highlight")].filter((part) => !part.closest("details:not([open])"));
  const drawn = [...article.querySelectorAll("figure, img, svg[role=img], canvas, video")];
  const outermost = drawn.filter((part) => !part.parentElement.closest("figure, svg[role=img]"));
  return [tall(code.filter((part) => !part.closest(".cell_output"))), tall(outermost)];
}"""  # visible source, shell lines too but no output; figures with their captions, drawings and plots, each once
PHONE_FRONT_PAGE = 3600  # pixels high at most, 400 wide
OFF_GRID = [(7.3, 1.9), (-21.4, 0.6), (0.0, 5.1)]  # places of the plane: mean, dispersion
CHECKED = ["intro", "plane", "claims", "provenance", "setting", "notation", "glossary", "your_model"]

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


def test_search_finds_pages_without_raw_tex_or_errors(address: str, browser: object) -> None:
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    for words, title in (("rank+collapse", "Rank collapse"), ("random+walk", ""), ("constructor", "")):
        page.goto(f"{address}/search.html?q={words}")
        page.wait_for_function("document.querySelector('.search-summary')?.textContent.match(/\\d|did not match/)")
        page.wait_for_timeout(2000)  # each result fetches its page
        assert not title or page.locator("ul.search li a", has_text=title).count() >= 1
        assert not re.search(r"\\[(\[a-z]", page.locator("#search-results").inner_text()), words
    assert errors == []
    page.close()


def test_a_link_shows_what_it_leads_to_on_hover_focus_and_the_first_tap(address: str, browser: object) -> None:
    page = browser.new_context(has_touch=True).new_page()
    page.goto(f"{address}/book/theory.html")
    page.evaluate(READY)
    assert page.locator("mjx-container[tabindex]").count() == 0  # a formula is no tab stop
    preview = page.locator("#preview")
    for kind in ("term-", "def-", "prop-"):
        link = page.locator(f"article a.has-preview[href*='#{kind}']").first
        for look in (link.hover, link.focus):
            look()
            preview.wait_for(state="visible")
            assert len(preview.inner_text()) > 40
            page.keyboard.press("Escape")
            assert not preview.is_visible()
            page.mouse.move(2, 2)
    link.tap()
    preview.wait_for(state="visible")
    assert "#" not in page.url
    link.tap()
    page.wait_for_url("**#prop-*")
    page.close()


def test_a_link_to_a_claim_unfolds_it_and_the_overview_filters(address: str, browser: object) -> None:
    page = browser.new_page()
    page.goto(f"{address}/book/claims.html#claim-low-entropy-traps")
    page.locator("#claim-low-entropy-traps[open]").wait_for()
    rows = page.locator("table.claims-overview tbody tr")
    rows.locator("a[href='#claim-regimes']").click()
    page.locator("#claim-regimes[open]").wait_for()
    page.get_by_label("verdict").select_option("partly")
    shown = page.locator("table.claims-overview tbody tr:visible")
    assert 0 < shown.count() < rows.count()
    assert all("partly" in text for text in shown.all_inner_texts())
    assert f"{shown.count()} of {rows.count()} claims" in page.get_by_role("status").inner_text()
    page.close()


def test_a_chapter_shows_figures_first_and_little_code(address: str, pages: list[str], browser: object) -> None:
    page, missed = browser.new_page(viewport={"width": 1400, "height": 900}), []
    for name in (each for each in pages if each.startswith("notebooks/")):
        page.goto(f"{address}/{name}")
        page.evaluate(READY)
        code, figures = page.evaluate(SHARES)
        if code > MOST_CODE or figures < LEAST_FIGURES:
            missed.append(f"{name}: code {code:.0%}, figures {figures:.0%}")
    page.close()
    assert not missed, "; ".join(missed)


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


def test_the_front_page_is_short_on_a_phone_and_its_rows_scroll_by_themselves(address: str, browser: object) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.goto(f"{address}/book/intro.html")
    page.evaluate(READY)
    assert page.evaluate("document.documentElement.scrollHeight") <= PHONE_FRONT_PAGE
    for row in (".verdict-strip ul", ".start-cards .sd-row"):
        assert page.locator(row).first.evaluate("row => row.scrollWidth > row.clientWidth + 100")
    page.close()


def test_a_phone_shows_the_panels_of_a_figure_one_below_the_other_and_a_tap_shows_it_whole(
    address: str, browser: object
) -> None:
    page = browser.new_context(viewport={"width": 400, "height": 900}, has_touch=True).new_page()
    page.goto(f"{address}/notebooks/deeper_and_wider.html")
    page.evaluate(READY)
    figure = page.locator("figure#fig-shapes-values")
    pieces = [piece.bounding_box() for piece in figure.locator(".stacked-piece").all()]
    assert len(pieces) == 2
    assert pieces[1]["y"] >= pieces[0]["y"] + pieces[0]["height"]
    assert min(piece["height"] for piece in pieces) > 200
    assert min(piece["width"] for piece in pieces) > 300
    assert max(piece["x"] + piece["width"] for piece in pieces) <= 400
    assert figure.get_by_role("img").count() == 1  # with the text of the picture, once
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    figure.locator(".stacked-piece").first.tap()
    assert figure.locator("> img").bounding_box()["width"] == 720
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    figure.locator("> img").tap()
    assert figure.locator(".stacked-piece").first.is_visible()
    page.set_viewport_size({"width": 1400, "height": 900})
    assert figure.locator("> img").is_visible()
    assert not figure.locator(".stacked-panels").is_visible()
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_an_accessibility_checker_finds_nothing_serious(address: str, browser: object, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    checker = str(distribution("axe-playwright-python").locate_file("axe_playwright_python/axe.min.js"))
    names = [f"book/{name}.html" for name in CHECKED] + ["notebooks/signal_propagation.html", "search.html"]
    found = {}
    for name in names:
        page.goto(f"{address}/{name}")
        page.evaluate(READY)
        page.add_script_tag(path=checker)
        found[name] = page.evaluate(CHECK)
    context.close()
    assert {name: violations for name, violations in found.items() if violations} == {}


def opened_plane(address: str, browser: object, **options: object) -> object:
    page = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | options)).new_page()
    page.goto(f"{address}/book/plane.html")
    page.wait_for_function("window.explorer && document.querySelector('[data-part=summary]').textContent")
    return page


def test_the_plane_computes_attention_and_eigenvalues_as_the_package_does(address: str, browser: object) -> None:
    page = opened_plane(address, browser)
    for tokens in TOKEN_LAWS:
        for mean, spread in OFF_GRID:
            weights = first_attention([Spectrum(mean, spread)], Stack(tokens=tokens), seed=0)[0]
            seen = page.evaluate(
                "([law, x, y]) => { const { weights, entropy } = explorer.laws.attention(law, 'true', x, y);"
                " return [[...weights], entropy, [...explorer.laws.eigenvalues(law, x, y)]] }",
                [tokens, mean, spread],
            )
            drawn = torch.tensor(seen[0], dtype=torch.float64).view(64, 64)
            torch.testing.assert_close(drawn, weights, atol=0.01, rtol=0)
            assert abs(seen[1] - float(layer_entropy(weights)) / math.log(48)) < 0.005
            assert abs(sum(seen[2]) - mean) < 0.01
    clipped = page.evaluate("[...explorer.laws.attention('random walk', 'linearised', 7.3, 1.9).weights]")
    generator = torch.Generator().manual_seed(0)
    x = Stack().draw_input(generator)
    w = 7.3 / 64 * torch.eye(64) + 1.9 / 8 * random_spectrum_matrix(64, 0.0, 1.0, generator=generator)
    expected = piecewise_linear_attention(attention_logits(x, w), mask=causal_mask(64))
    torch.testing.assert_close(torch.tensor(clipped, dtype=torch.float64).view(64, 64), expected, atol=0.002, rtol=0)
    page.close()


@pytest.mark.parametrize("dim", [2, 4, 64])
def test_the_plane_draws_the_exact_law_of_the_package_between_its_nodes(
    address: str, browser: object, dim: int
) -> None:
    page = opened_plane(address, browser)
    for length in (64, 8192):
        for mean, spread in [*OFF_GRID, (0.37, 0.3)]:
            rows = page.evaluate("place => explorer.laws.profile(...place)", [dim, length, mean, spread])
            eigenvalues = mean / dim + spread / dim**0.5 * torch.from_numpy(law_spectrum(dim))
            at = rows[:: 32 if length == 64 else 8]  # whole tokens, or next to one: the page draws between them
            asked = torch.tensor([row["theta"] for row in at], dtype=torch.float64)
            exact = signal_propagation(asked, torch.diag(eigenvalues), length=length, method="exact")
            drawn = torch.tensor([row["exact"] for row in at], dtype=torch.float64)
            torch.testing.assert_close(drawn, exact, atol=0.012 if dim < 8 else 0.005, rtol=0)
            normal = signal_propagation(asked, torch.diag(eigenvalues), length=length)
            drawn = torch.tensor([row["gaussian"] for row in at], dtype=torch.float64)
            torch.testing.assert_close(drawn, normal, atol=1e-6 if length == 64 else 1e-3, rtol=0)
    page.close()


def test_the_point_answers_to_mouse_touch_and_keys_and_says_where_it_is(address: str, browser: object) -> None:
    page = opened_plane(address, browser, has_touch=True)
    box, handle = page.locator("[data-part=plane]").bounding_box(), page.locator("[data-part=handle]")
    places = [handle.get_attribute("aria-valuetext")]
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 100, steps=4)
    page.mouse.up()
    steps = [lambda: page.touchscreen.tap(box["x"] + 200, box["y"] + 250)]
    steps += [lambda key=key: handle.press(key) for key in ("ArrowRight", "ArrowUp", "Home", "PageUp")]
    steps += [lambda name=name: page.locator(f"[data-part={name}]").press("ArrowRight") for name in ("mean", "layer")]
    for step in [lambda: None, *steps]:
        step()
        page.wait_for_timeout(60)
        places.append(handle.get_attribute("aria-valuetext") + page.locator("[data-part=layer-value]").inner_text())
    assert len(set(places)) == len(places)
    page.wait_for_function("document.querySelector('[data-part=summary]').textContent.includes('at 9 layers')")
    centre = handle.bounding_box()
    x = page.evaluate("explorer.views.plane.scale('x')(explorer.chosen.mean)")
    assert abs(centre["x"] + centre["width"] / 2 - box["x"] - 56 - x) < 1.5
    page.close()


def test_the_switches_change_the_map_and_the_word_for_the_point(address: str, browser: object) -> None:
    page = opened_plane(address, browser)
    maps = []
    for choice in ("random walk", "independent", "AR(1)", "linearised"):
        page.locator("label", has_text=choice).first.click()
        page.wait_for_timeout(100)
        maps.append(page.evaluate("explorer.views.plane.data('cells').map(cell => cell.state).join()"))
    assert len(set(maps)) == 4
    values = read_values(ROOT / VALUES)
    assert maps[1].split(",") == cell_states(values, "independent", "true", 8)
    assert maps[3].split(",") == cell_states(values, "AR(1)", "linearised", 8)
    for choice in ("true", "random walk"):
        page.locator(".explorer-group label", has_text=choice).first.click()
    words = {"neither": "Safe", "tokens alike": "Tokens become", "few tokens": "Attention on few", "both": "Both"}
    for name, word in words.items():
        page.locator("button", has_text=name).click()
        page.wait_for_timeout(600)
        assert page.locator("[data-part=verdict]").inner_text().startswith(word)
    page.close()


def test_a_button_leads_to_the_state_it_names_on_every_map_or_is_off(address: str, browser: object) -> None:
    page = opened_plane(address, browser, reduced_motion="reduce")
    words = {"safe": "Safe", "alike": "Tokens become alike", "few": "Attention on few tokens", "both": "Both collapses"}
    used = 0
    for tokens in page.locator("input[name=explorer-tokens]").all():
        tokens.check(force=True)
        page.wait_for_timeout(60)
        for button in page.locator("button[data-goal]:not([data-goal=''])").all():
            if button.is_enabled():
                button.click()
                page.wait_for_timeout(60)
                assert page.locator("[data-part=verdict]").inner_text() == words[button.get_attribute("data-goal")]
                used += 1
    assert used > len(words)
    page.close()


def test_the_plane_is_above_the_fold_and_a_frame_of_it_takes_less_than_a_sixtieth_of_a_second(
    address: str, browser: object
) -> None:
    page = opened_plane(address, browser)
    box = page.locator("[data-part=plane]").bounding_box()
    assert box["y"] + box["height"] < 900
    work = """() => Array.from({ length: 120 }, (_, i) => {
      explorer.chosen.mean = 0.5 * i - 30; explorer.chosen.dispersion = 0.25 * 2 ** ((i % 28) / 4);
      const start = performance.now(); explorer.update(); return performance.now() - start;
    }).sort((a, b) => a - b)[60]"""
    assert min(page.evaluate(work) for _ in range(3)) < 1000 / 60
    page.close()


def test_a_reader_who_wants_no_motion_gets_none(address: str, browser: object) -> None:
    page = opened_plane(address, browser, reduced_motion="reduce")
    page.locator("button", has_text="Xavier").click()
    assert page.evaluate("explorer.chosen.mean") == 0
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
    page.goto(f"{address}/notebooks/signal_propagation.html")
    widths = page.locator("figure img").evaluate_all("all => all.map(image => image.getBoundingClientRect().width)")
    assert widths
    assert max(widths) <= 700
    page.close()
