"""Build the site from the outputs at hand: strict, complete, and with everything a page needs inside it.

The sources are copied to a folder under `_build/<profile>` and built there; the site takes its place (`_build/html`, or
`_build/<profile>/html`) only when it is whole, so a failed build leaves the last good one.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml

from qkrepro import __version__
from qkrepro.errors import SiteError
from qkrepro.evidence.numbers import COMMITTED_PROFILE, book_root
from qkrepro.publishing.changes_page import changed_since_the_first_edition, changes_page
from qkrepro.publishing.claims_pages import verdicts, write_pages, write_threshold_figures
from qkrepro.publishing.colab import outdated_colab_cells
from qkrepro.publishing.explorer import write_explorer
from qkrepro.publishing.front_page import write_front_page
from qkrepro.publishing.neighbours_page import write_neighbours
from qkrepro.publishing.notebooks import code_cells, read_notebook, write_notebook
from qkrepro.publishing.provenance import write_provenance
from qkrepro.publishing.repetition import repetition_page
from qkrepro.publishing.revision import book_revision, last_change
from qkrepro.publishing.site_check import site_problems
from qkrepro.publishing.spectrum_example import write_spectrum_example

MATHJAX = "sphinx-mathjax-offline/static/mathjax/tex-svg.js"


def build_site(profile: str = COMMITTED_PROFILE, *, draft: bool = False, log: Callable[[str], None] = print) -> Path:
    """Build the site of a profile and return its folder.

    draft: leave out pages of the table of contents that are not there yet, and only tell what is wrong.
    Raises SiteError when Sphinx warns, a page or picture is missing, a link inside the site is broken, a page would
    load something from another host, or the button for Colab would lead to a notebook that cannot run there.
    """
    root, start = book_root(), time.perf_counter()
    if (outdated := outdated_colab_cells(root)) and not draft:
        raise SiteError(
            f"the cell for Colab does not fit _config.yml in {', '.join(outdated)}; run `qkrepro colab` first"
        )
    place = root / "_build" / profile
    place.mkdir(parents=True, exist_ok=True)
    target = root / "_build" / "html" if profile == COMMITTED_PROFILE else place / "html"
    with tempfile.TemporaryDirectory(prefix="site-", dir=place) as scratch:  # its own: two builds do not meet
        work = Path(scratch)
        log("site: copying the sources")
        pages = stage(root, work, profile, draft=draft)
        problems = unusable_notebooks(work, pages)
        if problems and not draft:
            raise SiteError(f"{'; '.join(problems)}; run `qkrepro figures` first")
        log(f"site: building {len(pages)} pages" + ("" if draft else ", warnings are errors"))
        built = run_jupyter_book(work, place / "site.log", strict=not draft, log=log)
        _name_the_source_of_the_changelog(built)
        _give_the_entrance_an_icon(built)
        _name_the_toggles(built)
        _empty_the_downloads(built)
        _leave_out_what_no_browser_asks_for(built)
        problems += site_problems(built, pages)
        if problems and not draft:
            raise SiteError(f"the site has {len(problems)} problems: {'; '.join(problems[:20])}")
        for problem in problems:
            log(f"site: {problem}")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(built, target)
    if profile == COMMITTED_PROFILE:  # only now: a build that fails stores nothing
        write_pages()
        write_neighbours(root)
    log(f"site: {len(pages)} pages in {time.perf_counter() - start:.1f} s, {describe_size(target)}")
    return target


def stage(root: Path, work: Path, profile: str, *, draft: bool = False) -> list[str]:
    """Copy what the site is made of to `work`; returns the pages of the table of contents, without suffixes.

    root: the checkout. profile: whose outputs are shown. Raises SiteError when a page is missing (draft: it is left
    out).
    """
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "numbers", "profiles")
    for folder in ("book", "notebooks"):
        shutil.copytree(root / folder, work / folder, ignore=unwanted)
    if profile == COMMITTED_PROFILE:
        write_pages(work / "book" / "generated")
        write_neighbours(root, work / "book" / "generated")
    shutil.copy2(root / "CHANGELOG.md", work / "book" / "changelog.md")
    if profile != COMMITTED_PROFILE:
        for notebook in sorted((root / "_build" / profile / "notebooks").glob("*.ipynb")):
            shutil.copy2(notebook, work / "notebooks")
    mathjax = work / "local" / "mathjax" / "tex-svg.js"
    mathjax.parent.mkdir(parents=True)
    shutil.copy2(str(distribution("sphinx-mathjax-offline").locate_file(MATHJAX)), mathjax)
    config = configuration(root, profile)
    if not (work / "book" / "references.bib").is_file():
        config.pop("bibtex_bibfiles")
    (work / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    missing = [page for page in _pages(toc) if not _source(work, page)]
    if missing and not draft:
        raise SiteError(f"_toc.yml must name pages that are there (or use --draft), got {', '.join(missing)}")
    _drop(toc, missing)
    (work / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    write_explorer(root, work)
    write_provenance(root, work, profile)
    write_threshold_figures(work / "book" / "generated")
    write_spectrum_example(work / "book" / "generated")
    judged = verdicts()
    changes = changes_page(changed_since_the_first_edition(root, judged))
    (work / "book" / "generated" / "changes.md").write_text(changes, encoding="utf-8")
    (work / "book" / "generated" / "repetition.md").write_text(repetition_page(root), encoding="utf-8")
    write_front_page(root, work, judged)
    return [page for page in _pages(toc) if page not in missing]


def unusable_notebooks(work: Path, pages: Sequence[str]) -> list[str]:
    """Return the notebooks among the pages with a code cell that was not executed, or that failed."""
    problems = []
    for path in (source for page in pages if (source := _source(work, page)) and source.suffix == ".ipynb"):
        cells = code_cells(read_notebook(path))
        if not all(cell.execution_count for cell in cells):
            problems.append(f"{path.stem} has cells that were not executed")
        if any(output.output_type == "error" for cell in cells for output in cell.outputs):
            problems.append(f"{path.stem} has a cell that failed")
    return problems


def configuration(root: Path, profile: str) -> dict[str, Any]:
    """Return `_config.yml` with the revision in the footer, and the buttons that lead to a public repository."""
    config: dict[str, Any] = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    html = config["html"]
    shown = "" if profile == COMMITTED_PROFILE else f" Rendered at profile <b>{profile}</b>: no verdict rests on it."
    html["extra_footer"] = (
        f"<p>Version {__version__}, revision {book_revision(root)}, last changed {last_change(root)}.{shown}</p>"
    )
    config["bibtex_bibfiles"] = ["book/references.bib"]
    url = (config["repository"].get("url") or "").rstrip("/")
    if not url:
        config.pop("repository")
        return config
    config["repository"]["url"] = url
    for button in ("use_issues_button", "use_repository_button", "use_edit_page_button"):
        html[button] = True
    config["launch_buttons"] = {
        "notebook_interface": "jupyterlab",
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
        "thebe": True,
    }
    return config


def run_jupyter_book(work: Path, log_file: Path, *, strict: bool, log: Callable[[str], None]) -> Path:
    """Run `jupyter-book build` on `work`, keep its output in `log_file`, and return the folder of the pages.

    strict: warnings are errors. log: takes the warnings. Raises SiteError with the warnings when it fails, or when it
    built nothing.
    """
    code = "from jupyter_book.cli.main import main; main()"
    options = ["-W", "-n", "--keep-going"] if strict else []
    command = [sys.executable, "-c", code, "build", *options, "--all", str(work)]
    environment = os.environ | {"PYTHONPATH": str(book_root()), "PYTHONWARNINGS": "ignore"}
    with log_file.open("w", encoding="utf-8") as stream:
        outcome = subprocess.run(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=work, check=False
        )
    lines = log_file.read_text(encoding="utf-8").replace(str(work) + os.sep, "").splitlines()
    noted = [line for line in lines if re.search(r"WARNING|ERROR|^[\w.]+Error: ", line)]
    for line in noted:
        log(f"site: {line}")
    built = work / "_build" / "html"
    if (outcome.returncode and strict) or not built.is_dir():
        raise SiteError(f"the build failed with {len(noted)} warnings, listed above; the whole log is {log_file}")
    return built


def describe_size(site: Path) -> str:
    """Return the size of the site and of its largest page, in words."""
    files = [path for path in site.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files) / 1e6
    page = max((path for path in files if path.suffix == ".html"), key=lambda path: path.stat().st_size)
    return f"{total:.1f} MB, largest page {page.relative_to(site).as_posix()} {page.stat().st_size / 1e6:.2f} MB"


def _name_the_source_of_the_changelog(built: Path) -> None:
    """Point the edit link of the changelog to the top of the repository, where its source lies."""
    page = built / "book" / "changelog.html"
    if page.is_file():
        text = page.read_text(encoding="utf-8")
        page.write_text(
            re.sub(r"(/(?:edit|blob)/[^/\"]+)/book/changelog\.md", r"\1/CHANGELOG.md", text), encoding="utf-8"
        )


def _give_the_entrance_an_icon(built: Path) -> None:
    """Give `index.html`, which leads to the front page, an icon, since a browser asks for one."""
    entrance = built / "index.html"
    text = entrance.read_text(encoding="utf-8") if entrance.is_file() else ""
    if "http-equiv" in text and 'rel="icon"' not in text:
        entrance.write_text(f'<link rel="icon" href="_static/favicon.svg"/>\n{text}', encoding="utf-8")


def _empty_the_downloads(site: Path) -> None:
    """Take the outputs from the notebooks that a reader downloads: their pages show them, and they are large."""
    for path in sorted((site / "_sources" / "notebooks").glob("*.ipynb")):
        notebook = read_notebook(path)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        write_notebook(notebook, path)


def _leave_out_what_no_browser_asks_for(site: Path) -> None:
    """Take away maps for who debugs the theme, and fonts that are there in the format of every browser too."""
    for path in [*site.rglob("*.map"), *site.rglob("*.ttf")]:
        if path.suffix == ".map" or path.with_suffix(".woff2").is_file():
            path.unlink()


def _name_the_toggles(built: Path) -> None:
    """Name the theme's toggles of nested pages, which show an icon alone, for who hears a page."""
    bare = '<summary><span class="toctree-toggle"'
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if bare in text:
            named = bare.replace("<summary>", '<summary aria-label="Show or hide the pages below">')
            page.write_text(text.replace(bare, named), encoding="utf-8")


def _pages(toc: dict[str, Any]) -> Iterator[str]:
    for key, value in toc.items():
        if key in ("root", "file"):
            yield value
        elif isinstance(value, list):
            for entry in value:
                yield from _pages(entry)


def _drop(toc: dict[str, Any], missing: list[str]) -> None:
    for value in toc.values():
        if isinstance(value, list):
            value[:] = [entry for entry in value if entry.get("file") not in missing]
            for entry in value:
                _drop(entry, missing)
            value[:] = [entry for entry in value if entry.get("chapters", True)]


def _source(work: Path, page: str) -> Path | None:
    return next(
        (work / f"{page}{suffix}" for suffix in (".md", ".ipynb") if (work / f"{page}{suffix}").is_file()), None
    )
