"""Is a built site whole, and does it need nothing from another host? Sphinx does not see all of this."""

import re
from collections.abc import Iterable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {  # attributes from which a browser fetches by itself, before the reader presses anything
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "link": ("href",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
_FETCHED_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
    "manifest",
}
_CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


class _Page(HTMLParser):
    """Collects what a page loads, where it links to and the anchors it has."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.styles: list[str] = []
        self._inside_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values: Mapping[str, str] = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        self._inside_style = tag == "style"
        if "style" in values:
            self.styles.append(values["style"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and not _FETCHED_LINKS & set(values.get("rel", "").split()):
            return
        for name in _LOADED.get(tag, ()):
            if values.get(name):
                several = (
                    values[name].split(",") if name == "srcset" and "data:" not in values[name] else [values[name]]
                )
                self.loads += [part.split()[0] if name == "srcset" else part for part in several if part.strip()]

    def handle_data(self, data: str) -> None:
        if self._inside_style:
            self.styles.append(data)


def site_problems(site: Path, pages: Iterable[str]) -> list[str]:
    """Return what is wrong with the site in the folder `site`, in which `pages` (without suffix) must be."""
    problems = [f"{page}.html is missing" for page in pages if not (site / f"{page}.html").is_file()]
    parsed = {path.resolve(): _parse(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    for path, page in parsed.items():
        where = path.relative_to(site.resolve()).as_posix()
        problems += [f"{where} {problem}" for problem in _loading_problems(path, page)]
        problems += [f"{where} {problem}" for problem in _link_problems(path, page, parsed)]
    for path in sorted(site.rglob("*.css")):
        remote = _CSS_URL.findall(path.read_text(encoding="utf-8", errors="replace"))
        problems += [f"{path.relative_to(site).as_posix()} loads {url} from another host" for url in remote]
    return problems


def _parse(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def _loading_problems(path: Path, page: _Page) -> Iterator[str]:
    for url in page.loads:
        parts = urlsplit(url)
        if parts.netloc or parts.scheme in ("http", "https"):
            yield f"loads {url} from another host"
        elif parts.scheme != "data" and not (path.parent / unquote(parts.path)).exists():
            yield f"loads {url}, which is not there"
    for style in page.styles:
        yield from (f"loads {url} from another host" for url in _CSS_URL.findall(style))


def _link_problems(path: Path, page: _Page, parsed: Mapping[Path, _Page]) -> Iterator[str]:
    for url in page.links:
        parts = urlsplit(url)
        if parts.scheme or parts.netloc or url.startswith("javascript"):
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.exists():
            yield f"links to {url}, which is not there"
        elif parts.fragment and target in parsed and unquote(parts.fragment) not in parsed[target].anchors:
            yield f"links to {url}, but there is no such place on that page"
