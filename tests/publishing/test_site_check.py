"""The check of a built site finds what Sphinx does not see."""

from pathlib import Path

import pytest

from qkrepro.publishing.site_check import site_problems

GOOD = """<html><head><link rel="stylesheet" href="a.css?v=1"><link rel="canonical" href="https://example.org/">
<style>p { color: red }</style></head><body id="top"><img src="a.png"><script src="a.js"></script>
<a href="#top">up</a><a href="other.html#there">other</a><a href="https://example.org">away</a></body></html>"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text(GOOD)
    (tmp_path / "other.html").write_text('<html><body><p id="there">x</p></body></html>')
    (tmp_path / "a.css").write_text("p { background: url(a.png) }")
    for name in ("a.png", "a.js"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_whole_local_site_has_no_problems(site: Path) -> None:
    assert site_problems(site, ["index", "other"]) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('src="a.js"', 'src="https://cdn.example.org/a.js"', "loads https://cdn.example.org/a.js from another host"),
        ('src="a.js"', 'src="//cdn.example.org/a.js"', "loads //cdn.example.org/a.js from another host"),
        (
            'href="a.css?v=1"',
            'href="https://fonts.example.org/f"',
            "loads https://fonts.example.org/f from another host",
        ),
        ("color: red", "background: url('https://x.org/y.png')", "loads https://x.org/y.png from another host"),
        ('src="a.png"', 'src="b.png"', "loads b.png, which is not there"),
        ('src="a.png"', 'src="a.png" srcset="a.png 1x, c.png 2x"', "loads c.png, which is not there"),
        ('href="other.html#there"', 'href="gone.html"', "links to gone.html, which is not there"),
        ('href="#top"', 'href="#bottom"', "links to #bottom, but there is no such place on that page"),
        ('href="other.html#there"', 'href="other.html#here"', "links to other.html#here, but there is no such place"),
    ],
)
def test_each_fault_is_found_and_named(site: Path, old: str, new: str, problem: str) -> None:
    assert old in GOOD
    (site / "index.html").write_text(GOOD.replace(old, new))
    (found,) = site_problems(site, ["index"])
    assert found.startswith(f"index.html {problem}")


def test_a_missing_page_and_a_remote_font_in_a_style_sheet_are_found(site: Path) -> None:
    (site / "a.css").write_text("@import 'https://fonts.example.org/f.css';")
    assert site_problems(site, ["index", "gone"]) == [
        "gone.html is missing",
        "a.css loads https://fonts.example.org/f.css from another host",
    ]
