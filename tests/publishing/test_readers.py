"""Three readers, each from the first page to what they came for: ten minutes, one claim to check, a session of 2 GB.

What a reader would read off a page is read off the page here: counts, links, commands. Needs chromium (Debian:
apt install chromium); where it is missing the stories are skipped, but fail when CI is set.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import pytest
import torch
from binder_image import Image, make_image
from browsing import READY, is_here, running_browser, served, skip_without_chromium
from checkout_copy import Copy, make_copy
from laboratory import laboratory, open_chapter, run_all_cells, wait_until_all_cells_ran

from qkrepro.evidence.numbers import INTERACTIVE
from qkrepro.publishing.notebooks import read_notebook

SCREEN = {"width": 1400, "height": 900}
CHEAPEST, TRAINED = "linearisation-first-order", "low-entropy-slows"  # the latter rests on records of training
LARGEST, BINDER_MB = "true_softmax", 2000  # the chapter that needs most memory; what a session has
CLAIMS_ON_THE_PAGE = """() => Object.fromEntries([...document.querySelectorAll("details.claim")].map(fold => [
  fold.id.replace("claim-", ""),
  Object.fromEntries([...fold.querySelector("table").rows].map(
    row => [...row.cells].map(cell => cell.textContent.trim()))),
]))"""
BOX = "name => { const box = document.getElementById(name).getBoundingClientRect(); return [box.top, box.bottom] }"

pytestmark = pytest.mark.timeout(1500)  # a site is built, a chapter runs twice


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    skip_without_chromium()
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def address(built: Copy) -> Iterator[str]:
    with served(built.root / "_build" / "html") as where:
        yield where


class Session(NamedTuple):
    """A Binder session: its checkout, its environment, and what post-build said."""

    copy: Copy
    image: Image
    built: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("binder")
    copy = make_copy(folder / "copy")
    image = make_image(folder, copy)
    return Session(copy, image, image.post_build(copy))


class Memory:
    """Largest memory of a process and its children while looked at, in MB.

    sampled_mb: of all together at one time, shared pages counted once. at_most_mb: the sum of each one's own peak, as
    the system keeps it, shared pages counted in each; 0 where the system keeps none.
    """

    def __init__(self, pid: int) -> None:
        self.process, self.sampled_mb, self.peaks = psutil.Process(pid), 0.0, dict[int, float]()
        self._over, self._thread = threading.Event(), threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def at_most_mb(self) -> float:
        return sum(self.peaks.values())

    def _look(self) -> None:
        while not self._over.wait(0.2):
            with suppress(psutil.NoSuchProcess):
                family = [self.process, *self.process.children(recursive=True)]
                self.peaks |= {each.pid: max(_peak_mb(each.pid), self.peaks.get(each.pid, 0.0)) for each in family}
                self.sampled_mb = max(self.sampled_mb, sum(map(_memory_mb, family)))


def _memory_mb(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        memory = process.memory_full_info()
        return float(getattr(memory, "pss", memory.rss)) / 1e6
    return 0.0


def _peak_mb(pid: int) -> float:
    with suppress(OSError):
        kept = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(kept[1]) * 1024 / 1e6 if kept else 0.0
    return 0.0


def _watch(page: object, address: str) -> list[str]:
    """What goes wrong in the page from now on: errors in the console, requests to another host, requests that fail."""
    problems: list[str] = []
    page.on("console", lambda message: message.type == "error" and problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("request", lambda request: is_here(request.url, address) or problems.append(f"asks {request.url}"))
    page.on(
        "requestfailed",
        lambda request: "ERR_ABORTED" in (request.failure or "") or problems.append(f"no {request.url}"),
    )
    return problems


def _open_front_page(page: object, address: str) -> None:
    page.goto(f"{address}/index.html")
    page.wait_for_url("**/book/intro.html")
    page.evaluate(READY)


def _follow(page: object, link: object) -> None:
    """Click a link; what it leads to must be there, and in view."""
    target = link.evaluate("link => link.href")
    link.click()
    page.wait_for_url(target)
    page.evaluate(READY)
    anchor = page.evaluate("decodeURIComponent(location.hash.slice(1))")
    if anchor:
        top, bottom = page.evaluate(BOX, anchor)
        assert top < SCREEN["height"], target
        assert bottom >= 0, target


def _is_in_the_first_screen(found: object) -> bool:
    """Whether at least half of the first of what was found is in view before any scrolling."""
    box = found.first.bounding_box()
    return found.first.is_visible() and box["y"] >= 0 and box["y"] + box["height"] / 2 < SCREEN["height"]


def _picture_is_loaded(picture: object) -> bool:
    return bool(picture.evaluate("image => image.decode().then(() => image.naturalWidth > 0, () => false)"))


def _counted(text: str) -> dict[str, dict[str, int]]:
    """Verdicts that the front page counts, by provenance."""
    kinds = {"paper": "of the abstract", "reported": "reported of the paper"}
    found = {kind: re.search(rf"(\d+) claims {words}: ([\w ,]+)", text) for kind, words in kinds.items()}
    counts = {
        kind: {outcome.strip(): int(number) for number, outcome in re.findall(r"(\d+) ([a-z ]+)", match[2])}
        for kind, match in found.items()
        if match
    }
    assert {kind: sum(each.values()) for kind, each in counts.items()} == {
        kind: int(match[1]) for kind, match in found.items() if match
    }
    return counts


@pytest.mark.slow
def test_ten_minutes_lead_from_the_front_page_to_a_point_that_moves_the_figure(address: str, browser: object) -> None:
    start = time.perf_counter()
    page = browser.new_page(viewport=SCREEN)
    problems = _watch(page, address)
    _open_front_page(page, address)

    tally = page.locator("article p", has_text="claims of the abstract:").first
    picture = page.locator(".verdict-strip img")
    for found in (page.locator("div.answer"), page.locator("article p", has_text="The paper claims"), tally, picture):
        assert _is_in_the_first_screen(found)
    assert _picture_is_loaded(picture.first)
    counts = _counted(tally.inner_text())

    steps = page.locator("#where-to-start ol li")
    assert steps.count() > 2
    links = [steps.nth(number).get_by_role("link") for number in range(steps.count())]
    assert [link.count() for link in links] == [1] * len(links)
    steps_taken, turned = len(links), False
    for link in links:
        _open_front_page(page, address)
        _follow(page, link)
        if page.locator("[data-part=plane]").count():
            _drag_the_point(page)
            turned = True
        for image in page.locator(f"figure[id='{page.url.partition('#')[2]}'] img").all():
            assert _picture_is_loaded(image)
    assert turned

    claims = page.evaluate(CLAIMS_ON_THE_PAGE)
    for provenance, counted in counts.items():
        assert counted == Counter(row["verdict"] for row in claims.values() if row["provenance"] == provenance)
    assert problems == []
    page.close()
    print(f"\nten minutes: {steps_taken} steps; {time.perf_counter() - start:.1f} s here")


def _drag_the_point(page: object) -> None:
    """Drag the point of the plane to the right: where it stands and the summary answer."""
    page.wait_for_function("window.explorer && document.querySelector('[data-part=summary]').textContent")
    summary, handle = page.locator("[data-part=summary]"), page.locator("[data-part=handle]")
    before = summary.inner_text(), page.evaluate("explorer.chosen.mean")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)  # the summary is spoken once the point rests
    after = summary.inner_text(), page.evaluate("explorer.chosen.mean")
    assert all(new != old for new, old in zip(after, before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [CHEAPEST, TRAINED])
def test_a_claim_is_checked_with_the_commands_of_its_page_and_a_changed_number_refutes_it(
    address: str, browser: object, copy: Copy, name: str
) -> None:
    start = time.perf_counter()
    page = browser.new_page(viewport=SCREEN)
    problems = _watch(page, address)
    _open_front_page(page, address)
    _follow(page, page.locator("#where-to-start .sd-card", has_text="A review").get_by_role("link").first)
    claim = page.evaluate(CLAIMS_ON_THE_PAGE)[name]
    assert all(claim[row] for row in ("verdict", "numbers", "provenance", "rule", "refuted by"))
    judge_all = page.locator("article code", has_text=re.compile("^qkrepro claims$")).first.inner_text()
    section = page.locator(f"#claim-{name}")
    section.locator("summary").click()
    figure = section.locator("tr", has_text="figure").get_by_role("link").last
    _follow(page, figure)
    shown = page.locator(f"figure[id='{page.url.partition('#')[2]}'] img")
    assert shown.count() == 1
    assert _picture_is_loaded(shown)
    page.close()
    assert problems == []

    line = f"{claim['verdict']:15} {name} ({claim['provenance']}): {claim['numbers']}"
    recomputed = _run(copy, claim["recompute"])
    assert recomputed.returncode == 0, recomputed.stdout + recomputed.stderr
    assert line in recomputed.stdout.splitlines()
    judged = _run(copy, judge_all)
    assert judged.returncode == 0, judged.stderr
    assert line in judged.stdout.splitlines()

    if name == TRAINED:
        _change_a_record(copy)
        changed = _run(copy, claim["recompute"])
        assert changed.returncode == 0, changed.stdout + changed.stderr
        assert line not in changed.stdout.splitlines()
    else:
        _change_a_number(copy)
    refuted = _run(copy, judge_all)
    assert refuted.returncode == 1
    assert refuted.stderr.splitlines()[-1].endswith(f": {name}")
    print(f"\n{name}: {claim['verdict']}, `{claim['recompute']}` agrees; {time.perf_counter() - start:.1f} s here")


def _run(copy: Copy, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a page in a copy, as typed: the environment's own `qkrepro` comes first."""
    variables = os.environ | {"PYTHONPATH": str(copy.root)}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    variables.pop("QKREPRO_NUMBERS", None)
    return subprocess.run(
        shlex.split(command), cwd=copy.root, env=variables, capture_output=True, text=True, check=False
    )


def _change_a_number(copy: Copy) -> None:
    """Multiply one of the errors by 100 that chapter 1 saved at a spread of 0.1."""
    path = copy.root / "notebooks" / "numbers" / "softmax_linearisation.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    table = content["tables"]["error"]
    table["error"][table["spread"].index(0.1)] *= 100
    path.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")


def _change_a_record(copy: Copy) -> None:
    """Add 1 to the training losses of a run from Xavier's start, which the other starts are compared with."""
    for path in sorted((copy.root / "results" / "starts-reduced").glob("*/run.json")):
        start = json.loads(path.read_text(encoding="utf-8"))["configuration"]
        if (start["start_gain"], start["start_mean"]) == (1.0, None):
            metrics = pd.read_csv(path.with_name("metrics.csv"))
            metrics["train_loss"] += 1
            metrics.to_csv(path.with_name("metrics.csv"), index=False, lineterminator="\n")
            return
    raise AssertionError("results/starts-reduced has no run from Xavier's start")


@pytest.mark.slow
def test_the_post_build_step_of_binder_runs_in_a_clean_copy_and_installs_its_package(session: Session) -> None:
    said = session.built.stdout + session.built.stderr
    assert session.built.returncode == (0 if torch.version.cuda is None else 1), said[-3000:]
    assert "AssertionError: this image must not hold a CUDA build" in said or torch.version.cuda is None
    seen = (
        "import importlib.util as u, qkrepro; print(qkrepro.__file__, u.find_spec('hypothesis'), u.find_spec('dask'))"
    )
    done = subprocess.run(
        [session.image.python, "-c", seen],
        cwd="/",
        env=session.image.variables(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(session.copy.root / "qkrepro" / "__init__.py"), "None", "None"]


@pytest.mark.slow
def test_a_student_changes_a_parameter_in_a_session_of_2_gb_and_sees_figure_and_numbers_change(
    session: Session, browser: object
) -> None:
    start = time.perf_counter()
    path = session.copy.root / "notebooks" / f"{LARGEST}.ipynb"
    committed = [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]
    name, old = _proposed_parameter(path)
    new = int(old * 5 / 4)  # more, and more memory
    committed_files = _committed_files(session.copy)
    elsewhere: list[str] = []
    with laboratory(session.copy, str(session.image.python), session.image.variables()) as (address, pid):
        memory = Memory(pid)
        with memory:
            page = browser.new_page(viewport=SCREEN)
            page.on("request", lambda request: is_here(request.url, address) or elsewhere.append(request.url))
            open_chapter(page, address, LARGEST)
            line = page.locator(".jp-CodeCell .cm-line", has_text=re.compile(rf"^{name} = ")).first
            line.click()
            page.keyboard.press("Home")
            page.keyboard.press("Shift+End")
            page.keyboard.insert_text(f"{name} = {new}")
            run_all_cells(page)
            wait_until_all_cells_ran(path, page)
            seen = _changed_figure_on_the_screen(page, _pictures(committed))
            page.close()
    ran = [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]
    assert [cell for cell in ran if f"\n{name} = {new}\n" in cell.source]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    assert not [output for cell in ran for output in cell.outputs if output.output_type == "error"]
    assert not [output for cell in ran for output in cell.outputs if output.get("name") == "stderr"]
    assert seen in _pictures(ran)
    for kind in (_pictures, _printed):
        before, after = kind(committed), kind(ran)
        assert len(after) == len(before) > 1
        assert sum(now != then for now, then in zip(after, before, strict=True)) > 1
    assert elsewhere == []
    _nothing_committed_is_touched(session.copy, committed_files, name, old, new, ran)
    assert len(memory.peaks) > 1  # the server and the kernel
    assert memory.sampled_mb > 400
    assert max(memory.sampled_mb, memory.at_most_mb) < BINDER_MB
    print(
        f"\nsession: {name} {old} -> {new} in {LARGEST}, peak {memory.sampled_mb:.0f} MB sampled, "
        f"at most {memory.at_most_mb:.0f} of {BINDER_MB}; {time.perf_counter() - start:.1f} s here"
    )


def _committed_files(copy: Copy) -> dict[Path, bytes]:
    """Content of what verdicts and pages are made of: numbers, records, generated pages."""
    folders = ("notebooks/numbers", "book/generated", "results")
    files = {path: path.read_bytes() for each in folders for path in (copy.root / each).rglob("*") if path.is_file()}
    assert len(files) > 100
    return files


def _nothing_committed_is_touched(
    copy: Copy, before: dict[Path, bytes], name: str, old: float, new: float, ran: list[object]
) -> None:
    """The run by hand saved its numbers apart and marked its verdicts; the book's own still stand."""
    assert _committed_files(copy) == before
    assert (copy.root / INTERACTIVE / f"{LARGEST}.json").is_file()
    verdicts = [
        output["data"]["text/plain"]
        for cell in ran
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    told = f"; of changed parameters: {name} is {new!r} instead of {int(old)!r}."
    assert verdicts
    assert [verdict for verdict in verdicts if told not in verdict] == []
    assert copy.qkrepro("claims").returncode == 0
    checked = copy.qkrepro("figures", "--check")
    assert checked.returncode == 1
    assert f"{LARGEST}: changed: code, parameters, outputs, by a run that was not `qkrepro figures`" in checked.stdout


def _changed_figure_on_the_screen(page: object, committed: list[str]) -> str:
    """The first figure other than these that a reader meets from the top on, as the text of its PNG in a notebook."""
    picture = page.locator(".jp-Notebook .jp-RenderedImage img")
    page.locator(".jp-NotebookPanel .jp-Notebook").first.hover()
    page.mouse.wheel(0, -100_000)
    for _ in range(100):
        page.wait_for_timeout(100)
        sources = [each.get_attribute("src").removeprefix("data:image/png;base64,") for each in picture.all()]
        if changed := [source for source in map(_compact, sources) if source not in committed]:
            return changed[0]
        page.mouse.wheel(0, 300)
    raise AssertionError("no figure on the screen differs from the committed ones")


def _proposed_parameter(path: Path) -> tuple[str, float]:
    """The first parameter with a number that an exercise of the chapter proposes to change, and its committed value."""
    cells = read_notebook(path).cells
    proposals = [cell.source for cell in cells if cell.cell_type == "markdown" and "{dropdown} Answer" in cell.source]
    parameters = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    for name in re.findall(r"`(\w+)`", "\n".join(proposals)):
        value = re.search(rf"(?m)^{name} = ([\d.]+)\b", parameters)
        if value:
            return name, float(value[1])
    raise AssertionError(f"{path.stem} proposes no parameter with a number")


def _pictures(cells: list[object]) -> list[str]:
    outputs = [output for cell in cells for output in cell.outputs]
    return [_compact(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def _compact(text: str) -> str:
    """Text without the ends of its lines, which a notebook may or may not have."""
    return "".join(text.split())


def _printed(cells: list[object]) -> list[str]:
    """The tables that a reader sees, as text."""
    outputs = [output for cell in cells for output in cell.outputs if "text/html" in output.get("data", {})]
    return [output["data"]["text/plain"] for output in outputs]
