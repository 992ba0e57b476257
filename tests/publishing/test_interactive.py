"""The interactive page computes what the package computes: its own expressions, evaluated by Vega without a browser."""

import functools
import json
import math
import re

import pytest
import torch
import vl_convert

from qkrepro.publishing.interactive import (
    CASES,
    KNOBS,
    LOCATIONS,
    ROWS,
    page_fragment,
    vega_library,
    vega_specification,
)
from qkrepro.theory.propagation import localization, signal_propagation_limit

START = {knob.name: knob.start for knob in KNOBS}
SETTINGS = [START | case for case in CASES.values()]
SETTINGS += [{knob.name: knob.low for knob in KNOBS}, {knob.name: knob.high for knob in KNOBS}]
SETTINGS += [START | {"mean": -0.5, "log_length": 2}, START | {"mean": 0.0, "log_variance": -6, "log_temperature": 3}]
THETA = torch.arange(1, LOCATIONS + 1, dtype=torch.float64) / LOCATIONS

COLUMNS = {ROWS: ("theta", "rho", "index", "centre", "level", "regime"), "data_0": ("from", "to")}

each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


@functools.cache
def _specification() -> str:
    return json.dumps(vega_specification())


@functools.cache
def _evaluated(setting: tuple[tuple[str, float], ...]) -> dict[str, dict[str, list[str]]]:
    """Columns of the page's two datasets with the knobs set, as Vega computes them and without a browser."""
    specification, values = json.loads(_specification()), dict(setting)
    for signal in specification["signals"]:
        signal["value"] = values.get(signal["name"], signal.get("value"))
    for data, columns in COLUMNS.items():
        text = {"signal": " + '|' + ".join(f"datum['{name}']" for name in columns)}
        mark = {"type": "text", "name": f"asked-{data}", "from": {"data": data}, "encode": {"enter": {"text": text}}}
        specification["marks"].append(mark)
    scene = vl_convert.vega_to_scenegraph(specification)["scenegraph"]
    marks = {mark.get("name"): mark for mark in scene["items"][0]["items"]}
    rows = {data: [item["text"].split("|") for item in marks[f"asked-{data}"]["items"]] for data in COLUMNS}
    return {data: dict(zip(COLUMNS[data], zip(*rows[data], strict=True), strict=True)) for data in COLUMNS}


def _column(setting: dict[str, float], name: str, data: str = ROWS) -> torch.Tensor:
    texts = _evaluated(tuple(setting.items()))[data][name]
    return torch.tensor([float(text) for text in texts], dtype=torch.float64)


def _moments(setting: dict[str, float]) -> tuple[float, float, float, int]:
    dim, mean = 2 ** setting["log_dim"], setting["mean"]
    trace, trace_sq = dim * mean, dim * (mean**2 + 10 ** setting["log_variance"])
    return trace, trace_sq, 10 ** setting["log_temperature"], int(2 ** setting["log_length"])


def _package(setting: dict[str, float]) -> torch.Tensor:
    trace, trace_sq, temperature, length = _moments(setting)
    return signal_propagation_limit(THETA, trace, trace_sq, temperature=temperature, length=length)


@each_setting
def test_the_curve_of_the_page_is_the_profile_of_the_package(setting: dict[str, float]) -> None:
    assert _column(setting, "theta").equal(THETA)
    torch.testing.assert_close(_column(setting, "rho"), _package(setting), atol=1e-9, rtol=1e-6)


@each_setting
def test_index_centre_and_level_of_the_page_are_those_of_the_package(setting: dict[str, float]) -> None:
    expected = localization(THETA, _package(setting))
    for name, value in (("index", expected.index), ("centre", expected.centre), ("level", expected.level)):
        found = _column(setting, name)
        torch.testing.assert_close(found, value.expand(LOCATIONS), atol=1e-6, rtol=1e-6, equal_nan=True)


@each_setting
def test_the_band_is_where_the_signal_passes_in_the_limit_of_many_equal_eigenvalues(setting: dict[str, float]) -> None:
    trace, _, temperature, _ = _moments(setting)
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)
    inside = grid[(trace * (grid - 0.5) > 0) & (trace * (grid - 0.5) < temperature)]
    (low,), (high,) = (_column(setting, end, "data_0").tolist() for end in ("from", "to"))
    if not len(inside):
        assert low == high
    else:
        assert math.isclose(low, float(inside.min()), abs_tol=1e-4)
        assert math.isclose(high, float(inside.max()), abs_tol=1e-4)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("middle", "middle-site focus"),
        ("late", "late-site focus"),
        ("mirror: early", "mirror image: early tokens"),
        ("broad", "broad: no site is shut out"),
        ("all pass", "every token passes"),
        ("few eigenvalues", "late-site focus"),
    ],
)
def test_a_case_is_called_what_its_button_says(case: str, words: str) -> None:
    assert set(_evaluated(tuple((START | CASES[case]).items()))[ROWS]["regime"]) == {words}


def test_every_slider_has_a_label_and_a_place_for_its_value() -> None:
    fragment = page_fragment("")
    for name in re.findall(r'<input type="range" id="([^"]+)"', fragment):
        assert f'<label for="{name}">' in fragment
        assert f'<output for="{name}">' in fragment
    assert fragment.count("<input") == len(KNOBS)


def test_the_library_is_below_one_megabyte_and_ends_no_script_early() -> None:
    library = vega_library()
    assert len(library.encode()) < 1_000_000
    assert "</script" not in page_fragment("").split('type="application/json"')[1].split("</script>")[0]
    assert "window.vegaEmbed=" in library
