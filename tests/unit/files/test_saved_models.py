"""Files of models that are pointers, cut off, empty, of another model, or not there; and whole ones, which pass."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from astra_accel.config import ModelConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.evaluation.tester import find_tester
from astra_accel.files.saved_models import (
    ADAPTER_WEIGHTS,
    damage_of,
    damage_of_settings,
    damage_of_weights,
    tensors_of,
)
from astra_accel.models.loading.model_files import find_model
from astra_accel.models.loading.tiny import build_tiny, save_tiny

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4f5a0c\nsize 269060552\n"
PAGE = "<!DOCTYPE html>\n<html><body>504 Gateway Time-out</body></html>\n"
SAFE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("saved") / "model", "llama")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A folder of one's own to damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def cut(file: Path, size: float) -> None:
    """Keep the first bytes: so many, or from the end where it is below 0."""
    content = file.read_bytes()
    file.write_bytes(content[: int(size)])


def shard(folder: Path) -> Path:
    """The same model in two files with an index."""
    tensors = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    parts = dict(zip(SHARDS, (list(tensors)[:5], list(tensors)[5:]), strict=True))
    for name, names in parts.items():
        save_file({key: tensors[key] for key in names}, folder / name, metadata={"format": "pt"})
    weight_map = {key: name for name, names in parts.items() for key in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def as_torch(folder: Path) -> Path:
    """The same model as PyTorch saves it."""
    torch.save(load_file(folder / SAFE), folder / "pytorch_model.bin")
    (folder / SAFE).unlink()
    return folder


def index_of(folder: Path, **weights: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= weights
    (folder / INDEX).write_text(json.dumps(index))


# --- Whole ones ---------------------------------------------------------------------------------------------


def as_old_torch(folder: Path) -> Path:
    """As PyTorch saved before 1.6: a pickle, no archive."""
    torch.save(load_file(folder / SAFE), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / SAFE).unlink()
    return folder


def linked(folder: Path) -> Path:
    """As in the hub's cache, where files are links to blobs."""
    (folder / SAFE).rename(folder / "blob")
    (folder / SAFE).symlink_to(folder / "blob")
    return folder


@pytest.mark.parametrize("form", [lambda folder: folder, shard, as_torch, as_old_torch, linked])
def test_whole_weights_are_found_whole(model, form):
    folder = form(model)
    assert damage_of_weights(folder) is None
    assert damage_of_settings(folder) is None


def test_tensors_are_told_from_the_header_alone(model):
    expected = {name: tuple(tensor.shape) for name, tensor in load_file(model / SAFE).items()}
    assert tensors_of(model / SAFE) == expected


def test_a_header_is_enough_of_a_large_file(tmp_path):
    """A terabyte by its header and by its size on disk, of which nothing is read or stored."""
    size = 10**12
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (tmp_path / SAFE).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    assert damage_of(tmp_path / SAFE) is None


# --- Damaged ones -------------------------------------------------------------------------------------------


def replaced(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def cut_off(name: str, size: float) -> Callable[[Path], None]:
    return lambda folder: cut(folder / name, size)


def of_shards(damage: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: damage(shard(folder)) and None


def of_torch(damage: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: damage(as_torch(folder)) and None


def longer(folder: Path) -> None:
    (folder / SAFE).write_bytes((folder / SAFE).read_bytes() + b"more")


def dangling(folder: Path) -> None:
    (folder / SAFE).unlink()
    (folder / SAFE).symlink_to("../.git/annex/objects/nothing")


def no_archive(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not weights")


DAMAGES = {
    "pointer": (replaced(SAFE, POINTER), f"{SAFE} is a pointer of Git LFS ({len(POINTER)} bytes), not the file itself"),
    "page": (replaced(SAFE, PAGE), f"{SAFE} is a web page"),
    "empty": (cut_off(SAFE, 0), f"{SAFE} is empty"),
    "cut in the length": (cut_off(SAFE, 5), f"{SAFE} has no header of safetensors at its start (5 bytes)"),
    "cut in the header": (cut_off(SAFE, 100), f"{SAFE} has no header of safetensors at its start (100 bytes)"),
    "cut in the weights": (cut_off(SAFE, -1), "it is cut off"),
    "longer": (longer, "4 more than its header says"),
    "dangling": (dangling, f"{SAFE} is a link to ../.git/annex/objects/nothing, where nothing is"),
    "shard gone": (
        of_shards(lambda folder: (folder / SHARDS[1]).unlink()),
        f"{INDEX} names 2 files of weights, of which {SHARDS[1]} is not there",
    ),
    "shard pointer": (of_shards(replaced(SHARDS[0], POINTER)), f"{SHARDS[0]} is a pointer of Git LFS"),
    "shard cut": (of_shards(cut_off(SHARDS[1], -7)), f"{SHARDS[1]} has "),
    "index pointer": (of_shards(replaced(INDEX, POINTER)), f"{INDEX} is a pointer of Git LFS"),
    "index cut": (of_shards(cut_off(INDEX, 40)), f"{INDEX} is no JSON"),
    "index empty": (of_shards(replaced(INDEX, "{}")), f"{INDEX} has no weight_map"),
    "index of another": (
        of_shards(lambda folder: index_of(folder, **{"model.layers.9.mlp.up_proj.weight": SHARDS[0]})),
        f"{INDEX} says that {SHARDS[0]} holds model.layers.9.mlp.up_proj.weight, which is not in it",
    ),
    "torch pointer": (of_torch(replaced("pytorch_model.bin", POINTER)), "pytorch_model.bin is a pointer of Git LFS"),
    "torch cut": (of_torch(cut_off("pytorch_model.bin", -30)), "pytorch_model.bin is an archive without its end"),
    "torch empty": (of_torch(cut_off("pytorch_model.bin", 0)), "pytorch_model.bin is empty"),
    "torch none": (of_torch(no_archive), "pytorch_model.bin holds no weights of PyTorch"),
    "configuration pointer": (replaced("config.json", POINTER), "config.json is a pointer of Git LFS"),
    "configuration cut": (cut_off("config.json", 50), "config.json is no JSON"),
    "configuration list": (replaced("config.json", "[]"), "config.json holds a JSON list, expected an object"),
    "tokenizer pointer": (replaced("tokenizer.json", POINTER), "tokenizer.json is a pointer of Git LFS"),
    "tokenizer cut": (cut_off("tokenizer.json", -20), "tokenizer.json is no JSON"),
    "tokenizer page": (replaced("tokenizer.json", PAGE), "tokenizer.json is a web page"),
    "tokenizer settings empty": (cut_off("tokenizer_config.json", 0), "tokenizer_config.json is empty"),
    "sentencepiece pointer": (replaced("tokenizer.model", POINTER), "tokenizer.model is a pointer of Git LFS"),
    "generation cut": (cut_off("generation_config.json", 9), "generation_config.json is no JSON"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_with_field_folder_and_file(name, model):
    damage, message = DAMAGES[name]
    damage(model)
    with pytest.raises(ConfigurationError) as error:
        find_model(ModelConfiguration(path=str(model)), "target")
    assert str(error.value).startswith(f"target.path is the folder {model}, in which ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_place_at_which_a_file_is_cut_off_is_noticed(model):
    size = (model / SAFE).stat().st_size
    content = (model / SAFE).read_bytes()
    for length in [*range(200), *range(200, size, 4999), size - 1]:
        (model / SAFE).write_bytes(content[:length])
        assert damage_of(model / SAFE) is not None, length
    (model / SAFE).unlink()
    torch.save(build_tiny("llama")[0].state_dict(), model / "pytorch_model.bin")
    whole = (model / "pytorch_model.bin").read_bytes()
    for length in [*range(50), *range(50, len(whole), 4999), len(whole) - 1]:
        (model / "pytorch_model.bin").write_bytes(whole[:length])
        assert damage_of(model / "pytorch_model.bin") is not None, length


def test_weights_that_no_loader_looks_for_are_named(model):
    (model / SAFE).rename(model / "consolidated.safetensors")
    with pytest.raises(ConfigurationError, match=r"it holds consolidated.safetensors, but no weights"):
        find_model(ModelConfiguration(path=str(model)), "tester")


def test_a_tester_that_is_evaluated_has_whole_weights(model):
    (model / SAFE).write_text(POINTER)
    with pytest.raises(ConfigurationError, match=r"can't be read: model.safetensors is a pointer of Git LFS"):
        find_tester(model)


def test_an_archive_is_told_by_its_end(tmp_path):
    with zipfile.ZipFile(tmp_path / "adapter_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    assert damage_of_weights(tmp_path, ADAPTER_WEIGHTS) is None
