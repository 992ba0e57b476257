"""`qkrepro spectrum` on safetensors: what it must not import, that threads change nothing, text without pandas."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make, save

from qkrepro.models.spectrum_columns import columns_as_text
from qkrepro.models.spectrum_report import qk_table
from qkrepro.models.weight_files import open_checkpoint
from qkrepro.theory.spectrum import qk_moments

HEAVY = ("torch", "pandas", "scipy", "matplotlib", "tqdm", "transformers")
COMMAND = """
import sys
from qkrepro.cli.app import main
sys.argv = ["qkrepro", "spectrum", {model!r}, "--format", {kind!r}, "--out", {out!r}]
try:
    main()
except SystemExit as stopped:
    assert not stopped.code
print("imported", *(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("llama").bfloat16(), tmp_path_factory.mktemp("llama"))


def run(model: Path, kind: str, out: Path, threads: int = 1) -> str:
    script = COMMAND.format(model=str(model), kind=kind, out=str(out), heavy=HEAVY)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    ).stdout.splitlines()[-1]


@pytest.mark.parametrize("kind", ["table", "csv", "json"])
def test_a_safetensors_file_becomes_a_table_without_pytorch_or_pandas(model: Path, kind: str, tmp_path: Path) -> None:
    assert run(model, kind, tmp_path / "heads") == "imported"
    assert (tmp_path / "heads").stat().st_size > 500


def test_layers_read_in_threads_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    run(model, "csv", tmp_path / "one", threads=1)
    run(model, "csv", tmp_path / "four", threads=4)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "four").read_bytes()


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 700_001)])
def test_bfloat16_becomes_float32_exactly(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"x": tensor}, tmp_path / "model.safetensors")
    array = open_checkpoint(tmp_path).tensors["x"].read()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.float().numpy())


def test_moments_of_half_precision_weights_are_those_of_their_float64_values(model: Path) -> None:
    table = qk_table(model, moments_only=True, draws=2)
    stored = load_file(model / "model.safetensors")
    for layer, rows in table.groupby("layer"):
        w_q, w_k = (stored[f"model.layers.{layer}.self_attn.{name}_proj.weight"].double() for name in "qk")
        moments = qk_moments(w_q.view(4, 8, 24), w_k.view(2, 8, 24).repeat_interleave(2, dim=0))
        np.testing.assert_allclose(rows["trace"], moments.trace, rtol=1e-12)
        np.testing.assert_allclose(rows["trace_sq"], moments.trace_sq, rtol=1e-11)
        np.testing.assert_allclose(rows["frobenius"], moments.frobenius_sq.sqrt(), rtol=1e-12)
        np.testing.assert_allclose(rows["spectral_norm"], moments.spectral_norm, rtol=1e-11)


def test_text_says_where_there_is_no_number() -> None:
    table = {"layer": [0, 1], "trace": [0.1, -2e-9], "localization": [float("nan"), 0.25]}
    lines = columns_as_text(table, "table").splitlines()
    assert [line.split() for line in lines] == [["layer", "trace", "local"], ["0", "0.1", "-"], ["1", "-2e-09", "0.25"]]
    assert len({len(line) for line in lines}) == 1
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(columns_as_text(table, "csv"))), pd.DataFrame(table))
    assert pd.read_json(io.StringIO(columns_as_text(table, "json")))["localization"].isna().tolist() == [True, False]
