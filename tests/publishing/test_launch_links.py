"""With a repository's address every launch button, edit link and "report an error" leads to a file that is there."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsing import is_here, running_browser, served, skip_without_chromium
from checkout_copy import SMALL, Copy, make_small_copy

from qkrepro.publishing.site import configuration

URL = "https://github.com/example/book"

PAGES = {"intro": "book/intro.md", "provenance": "book/provenance.md", "changelog": "CHANGELOG.md"}
KINDS = {  # what a link with the sample address leads to, and where in it the file of the repository is named
    "edit": re.compile(rf"^{URL}/edit/main/(.+)$"),
    "report": re.compile(rf"^{URL}/issues/new(?:\?.*)?$"),
    "repository": re.compile(rf"^{URL}/?$"),
    "binder": re.compile(r"^https://mybinder\.org/v2/gh/example/book/main\?urlpath=lab/tree/(.+)$"),
    "colab": re.compile(r"^https://colab\.research\.google\.com/github/example/book/blob/main/(.+)$"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A small copy without an address, and its site built strictly."""
    return _built(make_small_copy(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A small copy with a sample address, and its site built strictly."""
    copy = make_small_copy(tmp_path_factory.mktemp("linked"))
    copy.change("_config.yml", 'url: ""', f"url: {URL}/")
    assert copy.qkrepro("colab").returncode == 0
    return _built(copy)


def _built(copy: Copy) -> Copy:
    done = copy.qkrepro("html")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return copy


def _links(page: Path) -> dict[str, set[str]]:
    """Links of a page that lead to the sample repository, by kind: the files that they name."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for url in re.findall(r'(?:href|action)="([^"]*example/book[^"]*)"', page.read_text(encoding="utf-8")):
        (kind,) = (kind for kind, pattern in KINDS.items() if pattern.match(url.replace("&amp;", "&")))
        named = KINDS[kind].match(url).groups()
        found[kind].add(unquote(named[0]) if named else "")
    return found


def test_the_configuration_switches_every_button_with_the_address(copy: Copy) -> None:
    off = configuration(copy.root, "quick")
    assert "launch_buttons" not in off
    copy.change("_config.yml", 'url: ""', f"url: {URL}/")
    on = configuration(copy.root, "quick")["launch_buttons"]
    assert on["thebe"] is True
    assert {"binderhub_url", "colab_url"} <= set(on)


@pytest.mark.slow
def test_every_launch_button_and_edit_link_leads_to_a_file_that_is_there(linked: Copy) -> None:
    site = linked.root / "_build" / "html"
    links, notebook = _links(site / "notebooks" / f"{SMALL}.html"), f"notebooks/{SMALL}.ipynb"
    assert links["binder"] == links["colab"] == links["edit"] == {notebook}
    assert links["report"]
    for page, source in PAGES.items():
        links = _links(site / "book" / f"{page}.html")
        assert links["edit"] == {source}, page
        assert not links["binder"] | links["colab"], page
    assert all((linked.root / file).is_file() for file in (notebook, *PAGES.values()))


@pytest.mark.slow
def test_no_page_shows_the_cell_for_colab_and_the_chapter_reads_the_same(linked: Copy, plain: Copy) -> None:
    with_cell, without = (
        _article(copy.root / "_build" / "html" / "notebooks" / f"{SMALL}.html") for copy in (linked, plain)
    )
    assert with_cell == without


def _article(page: Path) -> str:
    """What a page says, without the bars around it and the address of a kernel."""
    article = re.search(r"<article.*</article>", page.read_text(encoding="utf-8"), re.DOTALL)[0]
    return re.sub(r"<script.*?</script>", "", article, flags=re.DOTALL)


@pytest.mark.slow
def test_the_front_page_leads_to_where_errors_are_reported(linked: Copy) -> None:
    text = (linked.root / "_build" / "html" / "book" / "intro.html").read_text(encoding="utf-8")
    assert f'href="{URL}/issues/new"' in text


@pytest.mark.slow
def test_live_code_asks_another_host_only_when_its_button_was_pressed(linked: Copy) -> None:
    skip_without_chromium()
    asked: list[str] = []
    with served(linked.root / "_build" / "html") as address, running_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.route(
            lambda url: not is_here(url, address), lambda route: (asked.append(route.request.url), route.abort())
        )
        page.goto(f"{address}/notebooks/{SMALL}.html")
        page.wait_for_timeout(1000)
        assert asked == []
        assert faults == []
        page.locator(".thebe-launch-button, .btn-launch-thebe").first.evaluate("button => button.click()")
        page.wait_for_timeout(1000)
        assert any("thebe" in urlsplit(url).path for url in asked)
