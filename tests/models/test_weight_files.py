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
from safetensors.torch import save, save_file
from torch import Tensor

from qkrepro.errors import CheckpointError
from qkrepro.models.weight_files import FLOATS, Checkpoint, open_checkpoint

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5, -2.0]).bfloat16(), "c": torch.tensor(3.0)}


def write(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read(checkpoint: Checkpoint, name: str) -> Tensor:
    return torch.from_numpy(checkpoint.tensors[name].read())


def widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


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
    assert sorted(checkpoint.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(read(checkpoint, name), widened(tensor))
        assert read(checkpoint, name).dtype == widened(tensor).dtype


def test_shards_of_an_index_are_read_as_one_model(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"y": torch.zeros(3)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(read(checkpoint, "x"), torch.ones(2))
    assert torch.equal(read(checkpoint, "y"), torch.zeros(3))


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": t}])
def test_state_dicts_of_torch_save_are_read(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any], old_format: bool
) -> None:
    torch.save(wrap(TENSORS), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old_format)
    checkpoint = open_checkpoint(tmp_path)
    assert all(torch.equal(read(checkpoint, name), widened(tensor)) for name, tensor in TENSORS.items())


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
    "no header": lambda p: p.write_bytes(b"1234"),
    "a header longer than the file": lambda p: write(p, {}, b"", length=1000),
    "a header of 2⁶⁴ − 1 bytes": lambda p: write(p, {}, b"", length=2**64 - 1),
    "a header cut off": lambda p: write(p, b"{", b""),
    "a header that is not UTF-8": lambda p: write(p, b"\xff\xfe{}", b""),
    "a header that is a list": lambda p: write(p, [], b""),
    "a name twice": lambda p: write(p, b'{"a": {}, "a": {}}', b""),
    "an entry without dtype": lambda p: write(p, {"a": [1]}, b""),
    "an unknown dtype": lambda p: write(p, {"a": entry([1], [0, 4], "F33")}, bytes(4)),
    "a dtype that is a list": lambda p: write(p, {"a": entry([1], [0, 4], ["F32"])}, bytes(4)),
    "a name of two lines": lambda p: write(p, {"a\nb": entry([1], [0, 4])}, bytes(4)),
    "a negative size": lambda p: write(p, {"a": entry([-1], [0, 4])}, bytes(4)),
    "a size that is no integer": lambda p: write(p, {"a": entry([1.0], [0, 4])}, bytes(4)),
    "one offset": lambda p: write(p, {"a": entry([1], [0])}, bytes(4)),
    "too few bytes for the shape": lambda p: write(p, {"a": entry([2], [0, 4])}, bytes(4)),
    "tensors that overlap": lambda p: write(p, {"a": entry([1], [0, 4]), "b": entry([1], [2, 6])}, bytes(8)),
    "a gap between tensors": lambda p: write(p, {"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, bytes(12)),
    "a file cut off": lambda p: write(p, {"a": entry([4], [0, 16])}, bytes(15)),
    "bytes left over": lambda p: write(p, {"a": entry([4], [0, 16])}, bytes(17)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_safetensors_file_is_refused_in_one_line_with_its_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    DAMAGED[damage](path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ") as caught:
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
        [read(checkpoint, name) for name in checkpoint.tensors]


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
        tensors = {name: checkpoint.tensors[name].read() for name in checkpoint.tensors}
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
        tensors = [read(checkpoint, name) for name in checkpoint.tensors]
    except CheckpointError:
        return
    assert all(isinstance(tensor, Tensor) for tensor in tensors)
