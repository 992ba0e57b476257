"""Files of weights: what the safetensors library writes is read back, and what is damaged is refused in one line."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from qkrepro.errors import CheckpointError
from qkrepro.models.weight_files import FLOATS, open_checkpoint, read_header

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5, -2.0]).bfloat16(), "c": torch.tensor(3.0)}


def write(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(str.isprintable),
        st.lists(st.integers(0, 4), max_size=3),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(sorted(FLOATS)),
)
def test_tensors_written_by_safetensors_are_read_back_bit_for_bit(
    tmp_path: Path, shapes: dict[str, list[int]], dtype: str
) -> None:
    tensors = {name: torch.randn(shape).to(getattr(torch, FLOATS[dtype])) for name, shape in shapes.items()}
    path = tmp_path / "any.safetensors"
    path.write_bytes(save(tensors))
    checkpoint = open_checkpoint(path)
    assert sorted(checkpoint.names()) == sorted(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.read(name).dtype == tensor.dtype
        assert torch.equal(checkpoint.read(name), tensor)


def test_shards_of_an_index_are_read_as_one_model(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"y": torch.zeros(3)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.read("x"), torch.ones(2))
    assert torch.equal(checkpoint.read("y"), torch.zeros(3))


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": t}])
def test_state_dicts_of_torch_save_are_read(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any], old_format: bool
) -> None:
    torch.save(wrap(TENSORS), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old_format)
    checkpoint = open_checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in TENSORS.items())


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"w": Harmful()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused"):
        open_checkpoint(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", pickle.dumps([1]), b"not a pickle at all" * 9])
def test_a_damaged_torch_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "at least 8": lambda p: p.write_bytes(b"1234"),
    "header claims 1000 bytes": lambda p: write(p, {}, b"", length=1000),
    "header claims 18446744073709551615 bytes": lambda p: write(p, {}, b"", length=2**64 - 1),
    "not JSON": lambda p: write(p, b"{", b""),
    "is not JSON": lambda p: write(p, b"\xff\xfe{}", b""),
    "must be a JSON object, got a list": lambda p: write(p, [], b""),
    "name appears twice": lambda p: write(p, b'{"a": {}, "a": {}}', b""),
    "has no dtype": lambda p: write(p, {"a": [1]}, b""),
    "got 'F33'": lambda p: write(p, {"a": entry([1], [0, 4], "F33")}, bytes(4)),
    "dtype": lambda p: write(p, {"a": entry([1], [0, 4], ["F32"])}, bytes(4)),
    r"'a\\nb'": lambda p: write(p, {"a\nb": entry([1], [0, 4])}, bytes(4)),
    "shape \\[-1\\]": lambda p: write(p, {"a": entry([-1], [0, 4])}, bytes(4)),
    "shape \\[1.0\\]": lambda p: write(p, {"a": entry([1.0], [0, 4])}, bytes(4)),
    "data_offsets \\[0\\]": lambda p: write(p, {"a": entry([1], [0])}, bytes(4)),
    "4 bytes for shape \\[2\\]": lambda p: write(p, {"a": entry([2], [0, 4])}, bytes(4)),
    "starts at byte": lambda p: write(p, {"a": entry([1], [0, 4]), "b": entry([1], [2, 6])}, bytes(8)),
    "b starts at byte": lambda p: write(p, {"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, bytes(12)),
    "truncated": lambda p: write(p, {"a": entry([4], [0, 16])}, bytes(15)),
    "the header describes": lambda p: write(p, {"a": entry([4], [0, 16])}, bytes(17)),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_a_damaged_safetensors_file_is_one_line_that_says_what_is_wrong(tmp_path: Path, message: str) -> None:
    path = tmp_path / "model.safetensors"
    DAMAGED[message](path)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map must be"),
        ({"weight_map": {}}, "weight_map must be"),
        ({"weight_map": {"x": "../one.safetensors"}}, "beside the index"),
        ({"weight_map": {"x": "/etc/passwd"}}, "beside the index"),
        ({"weight_map": {"x": "..\\one.safetensors"}}, "beside the index"),
        ({"weight_map": {"x": ".."}}, "beside the index"),
        ({"weight_map": {"x": 3}}, "beside the index"),
        ({"weight_map": {"x": "two.safetensors"}}, "two.safetensors is missing"),
        ({"weight_map": {"y": "one.safetensors"}}, "y is not in one.safetensors"),
    ],
)
def test_an_index_that_does_not_fit_its_folder_is_refused(tmp_path: Path, index: dict[str, Any], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"x": torch.ones(2)}, folder / "one.safetensors")
    save_file({"x": torch.ones(2)}, tmp_path / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_a_folder_with_nothing_two_files_or_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        save_file({"x": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="2 files of weights and no index"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="unmerged adapter"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("weights")
    with pytest.raises(CheckpointError, match=r"or end in .*, got '\.txt'"):
        open_checkpoint(tmp_path / "notes.txt")


def test_a_file_cut_off_after_its_header_was_read_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cut off"):
        [checkpoint.read(name) for name in checkpoint.names()]


VALID = save(TENSORS)
POSITION = st.integers(0, len(VALID) - 1)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(POSITION, st.integers(0, 255)), max_size=4),
    cut=st.integers(0, len(VALID)),
    more=st.binary(max_size=9),
)
@example(edits=[], cut=len(VALID), more=b"")
def test_any_damage_to_a_safetensors_file_is_refused_or_harmless(
    tmp_path: Path, edits: list[tuple[int, int]], cut: int, more: bytes
) -> None:
    raw = bytearray(VALID)
    for position, value in edits:
        raw[position] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(raw[:cut]) + more)
    try:
        checkpoint = open_checkpoint(path)
        tensors = {name: checkpoint.read(name) for name in checkpoint.names()}
    except CheckpointError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) <= path.stat().st_size - 8


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), old_format=st.booleans())
@pytest.mark.filterwarnings("ignore")  # of the unpickler, about damaged content
def test_any_damage_to_a_torch_file_is_refused_or_harmless(
    tmp_path: Path, data: st.DataObject, old_format: bool
) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=not old_format)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
    try:
        checkpoint = open_checkpoint(path)
        tensors = [checkpoint.read(name) for name in checkpoint.names()]
    except CheckpointError:
        return
    assert all(isinstance(tensor, Tensor) for tensor in tensors)


FIELD = st.one_of(st.integers(-1, 20), st.sampled_from(["F32", "BF16", "I8", "F4", "X", None, 2**63, 1.0, True]))
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "U64"]) | FIELD,
        "shape": st.lists(st.integers(0, 3), max_size=2) | st.lists(FIELD, max_size=2),
        "data_offsets": st.tuples(st.integers(0, 12), st.integers(0, 24)).map(list) | st.lists(FIELD, max_size=3),
    }
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.sampled_from("abc"), ENTRY, max_size=3), size=st.integers(0, 24))
@example(header={"a": entry([1], [0, 4]), "b": entry([2], [4, 8], "BF16")}, size=8)
@example(header={"a": entry([0, 7], [0, 0])}, size=0)
def test_a_header_is_accepted_only_if_the_safetensors_library_accepts_it(
    tmp_path: Path, header: dict[str, Any], size: int
) -> None:
    path = write(tmp_path / "any.safetensors", header, bytes(size))
    try:
        entries = read_header(path)
    except CheckpointError:
        return
    with safe_open(path, "pt") as theirs:
        assert sorted(theirs.keys()) == sorted(entries)
