"""`qkrepro spectrum`: formats, files, figures, the covariance of a text, hub names, and one line for bad input."""

import io
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tiny_models import make, save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qkrepro.cli.app import main
from qkrepro.cli.spectrum import parse_layers
from qkrepro.errors import ArgumentError
from qkrepro.models.chance import localization_of, null_draws, null_localization, percentile, z_score
from qkrepro.models.checkpoint import qk_heads
from qkrepro.models.head_products import head_products, random_products
from qkrepro.models.spectrum_columns import COLUMNS
from qkrepro.models.spectrum_report import qk_table

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("bert"), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("clip"), tmp_path_factory.mktemp("clip"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qkrepro", "spectrum", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return command


def test_csv_json_parquet_and_the_function_hold_the_same_numbers(run: Run, model: Path, tmp_path: Path) -> None:
    expected = qk_table(model, draws=20)
    code, out, _ = run(model, "--format", "csv", "--draws", 20)
    assert code == 0
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(out)), expected, rtol=1e-12)
    _, out, _ = run(model, "--format", "json", "--draws", 20)
    pd.testing.assert_frame_equal(pd.DataFrame(json.loads(out)), expected, rtol=1e-12)
    code, _, err = run(model, "--format", "parquet", "--draws", 20, "--out", tmp_path / "heads.parquet")
    if find_spec("pyarrow") is None:  # an optional package: without it the command says what to install
        assert (code, err) == (2, "qkrepro: format is 'parquet'; it needs: pip install 'qkrepro[hub]'\n")
    else:
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "heads.parquet"), expected)


def test_every_column_of_the_table_is_explained(clip: Path, tmp_path: Path) -> None:
    rotary = qk_table(save(make("llama"), tmp_path), distances=[0, 2], draws=2)
    assert set(rotary) | set(qk_table(clip, draws=2)) == set(COLUMNS)


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_draws(run: Run, model: Path) -> None:
    first, again, other = (run(model, "--format", "csv", "--draws", 9, "--seed", seed)[1] for seed in (0, 0, 1))
    assert first == again != other


def test_the_table_has_one_line_a_head_and_says_what_biases_add(run: Run, model: Path) -> None:
    _, out, _ = run(model, "--layers", "0,2", "--draws", 5)
    lines = out.splitlines()
    assert len([line for line in lines if line.strip()[:1].isdigit()]) == 8
    assert "Biases are not part of W" in out


def test_a_model_of_two_towers_names_them(run: Run, clip: Path) -> None:
    _, out, _ = run(clip, "--format", "csv", "--draws", 3)
    table = pd.read_csv(io.StringIO(out))
    assert table.groupby("part").size().to_dict() == {"text": 12, "vision": 10}


def test_rows_are_given_for_each_distance(run: Run, tmp_path: Path) -> None:
    _, out, _ = run(save(make("llama"), tmp_path), "--format", "csv", "--distance", "0,1,8", "--draws", 3)
    assert pd.read_csv(io.StringIO(out)).groupby("distance").size().to_dict() == {0: 12, 1: 12, 8: 12}


def test_the_figure_is_written_whole(run: Run, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "heads.png"
    assert run(model, "--plot", target, "--draws", 5)[0] == 0
    assert matplotlib.image.imread(target).std() > 0.05
    assert list(tmp_path.iterdir()) == [target]


BAD: dict[str, list[str]] = {
    "model is '/no/such/model'; no such file or folder": ["/no/such/model"],
    "layers must be ranges that grow": ["MODEL", "--layers", "3-1"],
    "layers must be numbers": ["MODEL", "--layers", "a"],
    "layers must be 0 to 2": ["MODEL", "--layers", "0-3"],
    "distance must be numbers": ["MODEL", "--distance", "1,x"],
    "distance must be 0": ["MODEL", "--distance", "8"],
    "distance must be >= 0 tokens, got -1.0": ["MODEL", "--distance", "-1"],
    "format must be one of table, csv, json, parquet": ["MODEL", "--format", "xml"],
    "out must be given with format 'parquet'": ["MODEL", "--format", "parquet"],
    "plot must be a file that ends in .png, .svg, .pdf, got 'a.gif'": ["MODEL", "--plot", "a.gif"],
    "plot must not be given with moments-only": ["MODEL", "--plot", "a.png", "--moments-only"],
    "out must be a file in a folder that exists, got '/no/such/folder/t.csv'": [
        "MODEL",
        "--out",
        "/no/such/folder/t.csv",
    ],
    "draws must be an integer >= 2, got 1": ["MODEL", "--draws", "1"],
    "text is '/no/such/text'; it cannot be read": ["MODEL", "--text", "/no/such/text"],
    "no whole safetensors file": ["DAMAGED"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(run: Run, model: Path, tmp_path: Path, message: str) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{}")
    (damaged / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:99])
    names = {"MODEL": str(model), "DAMAGED": str(damaged)}
    code, out, err = run(*(names.get(argument, argument) for argument in BAD[message]))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_nothing_is_written_when_the_model_cannot_be_read(run: Run, model: Path, tmp_path: Path) -> None:
    assert run(model, "--layers", "0-9", "--out", tmp_path / "t.csv", "--plot", tmp_path / "t.png")[0] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "layers"), [("0-2", [0, 1, 2]), ("4", [4]), ("1,0-2, 5", [1, 0, 2, 5])])
def test_ranges_of_layers_are_understood(text: str, layers: list[int]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "-", "1-", "-2", "0-99999999", "1,,2", "²"])
def test_other_text_is_no_range_of_layers(text: str) -> None:
    with pytest.raises(ArgumentError, match="layers must"):
        parse_layers(text)


def test_a_text_puts_localization_in_the_covariance_of_the_increments_of_its_tokens(tmp_path: Path) -> None:
    network = make("bert")
    folder = save(network, tmp_path)
    words = {f"w{number}": number for number in range(48)} | {"[UNK]": 47}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    numbers = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{number}" for number in numbers))
    plain, ours = qk_table(folder, draws=5), qk_table(folder, draws=5, text=text)
    with torch.no_grad():
        hidden = network(input_ids=torch.tensor([numbers]), output_hidden_states=True).hidden_states
    for row, head in zip(ours.to_dict("records"), qk_heads(folder), strict=True):
        steps = hidden[head.layer][0].double().diff(dim=0)  # BERT is post-norm: its attention reads the hidden state
        values, vectors = torch.linalg.eigh(steps.mT @ steps / len(steps))
        root = vectors * values.clamp(min=0).sqrt()
        m = (root.mT @ head.w_q.mT @ head.w_k @ root).numpy() / head.temperature
        theta = np.arange(1, 101) / 100
        size, mean = np.linalg.norm(m) ** 2, np.trace(m) * (theta - 0.5)
        spread = np.sqrt(((theta - 0.5) ** 2 + 1 / 12) * size + (theta - 0.5) ** 2 * np.trace(m @ m))
        rho = stats.norm.cdf((1 - mean) / spread) - stats.norm.cdf(-mean / spread)
        assert row["level"] == pytest.approx(np.trapezoid(rho, theta) / 0.99, rel=1e-5)
    unchanged = [name for name in plain if name not in ("localization", "centre", "level", "localization_percentile")]
    pd.testing.assert_frame_equal(plain[unchanged], ours[unchanged])


def test_a_hub_name_is_downloaded_and_prefers_safetensors(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(model))
    code, out, _ = run("someone/some-bert", "--format", "csv", "--draws", 2)
    assert (code, asked) == (0, ["someone/some-bert"])
    assert len(out.splitlines()) == 13


def test_a_hub_that_cannot_be_reached_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    code, _, err = run("someone/some-bert")
    assert code == 2
    assert (
        err
        == "qkrepro: model is 'someone/some-bert'; no such file or folder, and not to be had from the hub (no route)\n"
    )


@pytest.mark.parametrize(("d_head", "d_model"), [(4, 4), (4, 6), (4, 9), (3, 40)])
def test_random_products_follow_the_law_of_gaussian_weights(d_head: int, d_model: int) -> None:
    generator = torch.Generator().manual_seed(5)
    w_q, w_k = (torch.randn(4000, d_head, d_model, generator=generator, dtype=torch.float64) for _ in range(2))
    drawn, explicit = random_products(d_head, d_model, 4000, seed=6), head_products(w_q, w_k)
    for name in ("trace", "trace_sq", "frobenius_sq", "spectral_norm", "symmetry_score", "spectral_energy_share"):
        ours, theirs = getattr(drawn, name)(), getattr(explicit, name)()
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-4, name


@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_the_spectral_norm_is_right_for_query_weights_of_any_rank(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    w_q = torch.randn(2, 5, rank, generator=generator, dtype=torch.float64)
    w_q = w_q @ torch.randn(2, rank, 9, generator=generator, dtype=torch.float64)
    w_k = torch.randn(2, 5, 9, generator=generator, dtype=torch.float64)
    expected = np.linalg.norm((w_q.mT @ w_k).numpy(), 2, axis=(-2, -1))
    np.testing.assert_allclose(head_products(w_q, w_k).spectral_norm(), expected, rtol=1e-9, atol=1e-12)


def test_a_random_head_is_not_told_from_chance() -> None:
    null = null_draws(random_products(8, 64, 400, seed=0))
    fresh = null_draws(random_products(8, 64, 400, seed=1))
    assert null.relative_variance is not None
    assert fresh.relative_variance is not None
    assert float(z_score(fresh.trace, null.trace).std()) == pytest.approx(1, abs=0.15)
    share = percentile(fresh.relative_variance, null.relative_variance) / 100
    assert stats.kstest(share, "uniform").pvalue > 1e-4


def test_a_head_with_equal_eigenvalues_stands_out_in_every_column_of_chance() -> None:
    null = null_draws(random_products(8, 64, 400, seed=0))
    projection = torch.eye(8, 64, dtype=torch.float64)[None]
    products = head_products(projection, projection)
    assert null.relative_variance is not None
    assert float(z_score(products.trace() / np.sqrt(products.frobenius_sq()), null.trace)[0]) > 10
    assert float(percentile(torch.zeros(1), null.relative_variance)[0]) == 0
    assert null.energy_share is not None
    assert float(products.symmetry_score()[0]) == 1
    assert float(products.spectral_energy_share()[0]) == pytest.approx(1 / 8)  # equal eigenvalues share the energy
    assert float(z_score(products.spectral_energy_share(), null.energy_share)[0]) < -3


def test_a_head_of_rank_one_has_all_its_spectral_energy_in_one_singular_value() -> None:
    null = null_draws(random_products(8, 64, 400, seed=0))
    generator = torch.Generator().manual_seed(0)
    w_q, w_k = (torch.randn(1, 8, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    products = head_products(w_q * torch.eye(8, 1, dtype=torch.float64), w_k)  # one row of w_q is left
    assert null.energy_share is not None
    assert float(products.spectral_energy_share()[0]) == pytest.approx(1)
    assert float(z_score(products.spectral_energy_share(), null.energy_share)[0]) > 10


@pytest.mark.parametrize("temperature", [0.01, 1.0, 8.0])
def test_random_heads_of_a_heads_norm_localize_as_heads_with_their_moments_do(temperature: float) -> None:
    null = null_draws(random_products(4, 9, 30, seed=2), eigenvalues=False)
    norms = np.array([1e-3, 0.4, 1.0, 7.0, 300.0])
    moments = null.trace * norms[:, None], null.trace_sq * norms[:, None] ** 2, (norms**2)[:, None] + 0 * null.trace
    found, expected = null_localization(null, norms**2, temperature), localization_of(*moments, temperature)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)
    flat = localization_of(*np.zeros((3, 1)), temperature)[0]
    assert (null_localization(null, np.zeros(1), temperature) == flat).all()
