"""Checks that a saved model's files are whole, from their first and last bytes, never the weights in between.

A repository that was cloned without Git LFS holds pointers in place of weights; an interrupted download leaves a
truncated file; a proxy's error page is saved under the file's name. Loaders then fail late, with messages about bytes.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# In the order in which transformers looks for them.
MODEL_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
JSON_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "chat_template.json", "adapter_config.json"),
)
OTHER_TOKENIZER_FILES = ("*.model", "merges.txt", "vocab.txt", "*.tiktoken", "chat_template.jinja")
_POINTER = b"version https://git-lfs.github.com/spec/"
_ANNEX = b"/annex/objects/"
_PAGES = (b"<!doctype", b"<html", b"<?xml")
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
AGAIN = "download it again"


def damage_of(file: Path) -> str | None:
    """What is wrong with a weights or JSON file, as a sentence that begins with its name; None if it is whole.

    Args:
        file: the file; other kinds are only checked for being a pointer, a page or empty.
    """
    fault = _fault_of(file)
    return None if fault is None else f"{file.name} {fault}"


def damage_of_weights(folder: Path, names: Collection[str] = MODEL_WEIGHTS) -> str | None:
    """What is wrong with the weights that a loader would take from a folder, shards included.

    Args:
        folder: the folder of a model or an adapter.
        names: the names that the loader looks for, in its order.
    """
    found = next((folder / name for name in names if _is_there(folder / name)), None)
    if found is None:
        others = sorted(path.name for pattern in ("*.safetensors", "*.bin", "*.gguf") for path in folder.glob(pattern))
        held = f"it holds {', '.join(others)}, but" if others else "it has"
        return f"{held} no weights that can be loaded (expected {' or '.join(names)})"
    return _damage_of_shards(found) if found.name.endswith(".index.json") else damage_of(found)


def damage_of_settings(folder: Path) -> str | None:
    """What is wrong with a folder's configuration or tokenizer files."""
    files = [folder / name for name in JSON_FILES]
    files += [file for pattern in OTHER_TOKENIZER_FILES for file in sorted(folder.glob(pattern))]
    return next(_damages(file for file in files if _is_there(file)), None)


def tensors_of(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a whole safetensors file, by name."""
    with file.open("rb") as stream:
        header = _safetensors_header(stream.read(8), stream)
    return {name: tuple(entry["shape"]) for name, entry in _entries(header)}


def _damages(files: Iterable[Path]) -> Iterator[str]:
    return (damage for file in files if (damage := damage_of(file)) is not None)


def _damage_of_shards(index: Path) -> str | None:
    damage = damage_of(index)
    if damage is not None:
        return damage
    weight_map = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        return f"{index.name} has no weight_map that says which file holds which weights; {AGAIN}"
    shards = {name: index.parent / name for name in dict.fromkeys(map(str, weight_map.values()))}
    gone = [name for name, shard in shards.items() if not _is_there(shard)]
    if gone:
        return (
            f"{index.name} names {len(shards)} files of weights, of which {_few(gone)} {_is(gone)} not there; {AGAIN}"
        )
    return next(_damages(shards.values()), None) or _unnamed(index, weight_map, shards)


def _unnamed(index: Path, weight_map: Mapping[str, str], shards: Mapping[str, Path]) -> str | None:
    """Describes weights that an index expects in a file that does not have them."""
    for name, shard in shards.items():
        if shard.suffix == ".safetensors":
            held = tensors_of(shard)
            gone = [weight for weight, where in weight_map.items() if where == name and weight not in held]
            if gone:
                return (
                    f"{index.name} says that {name} holds {_few(gone)}, which {_is(gone)} not in it: the two are of "
                    f"different models; {AGAIN}"
                )
    return None


def _fault_of(file: Path) -> str | None:
    if not file.exists():
        return f"is a link to {file.readlink()}, where nothing is" if file.is_symlink() else "is not there"
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(512)
        fault = _no_content(start, size, file.suffix)
        if fault is None and file.suffix == ".safetensors":
            stream.seek(8)
            fault = _safetensors_fault(start[:8], stream, size)
    if fault is None and file.suffix == ".bin":
        fault = _torch_fault(file, start)
    if fault is None and file.suffix == ".json":
        fault = _json_fault(file)
    return fault


def _no_content(start: bytes, size: int, suffix: str) -> str | None:
    """What is there instead of the file's content, whatever its kind."""
    if not start:
        return f"is empty; {AGAIN}"
    if start.startswith(_POINTER) or (_ANNEX in start and size <= len(start)):
        return f"is a pointer of Git LFS ({size} bytes), not the file itself; run `git lfs pull`, or {AGAIN}"
    if start.lstrip().lower().startswith(_PAGES) and suffix in (".safetensors", ".bin", ".json", ".model"):
        return f"is a web page, for example of a failed download; {AGAIN}"
    return None


def _safetensors_fault(length: bytes, stream: Any, size: int) -> str | None:
    """Check the layout: 8 bytes with the header's length, the header as JSON, then the tensors, up to the last byte."""
    try:
        header = _safetensors_header(length, stream)
        begin = 8 + struct.unpack("<Q", length)[0]
        end = begin + max((entry["data_offsets"][1] for _, entry in _entries(header)), default=0)
    except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"has no header of safetensors at its start ({size} bytes): it is cut off, or something else; {AGAIN}"
    if size < end:
        return f"has {size} bytes, and its header asks for {end}: it is cut off; {AGAIN}"
    return f"has {size} bytes, {size - end} more than its header says; {AGAIN}" if size > end else None


def _safetensors_header(length: bytes, stream: Any) -> dict[str, Any]:
    num_bytes = struct.unpack("<Q", length)[0]
    if num_bytes > _LARGEST_HEADER:
        raise ValueError("no header is that long")
    text = stream.read(num_bytes)
    if len(text) < num_bytes:
        raise ValueError("the header is cut off")
    return json.loads(text)


def _entries(header: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, entry) for name, entry in header.items() if name != "__metadata__")


def _torch_fault(file: Path, start: bytes) -> str | None:
    """Check a zip archive, whose table of contents is at its end, or an old-format pickle."""
    if start.startswith(b"PK"):
        try:
            zipfile.ZipFile(file).close()
        except (zipfile.BadZipFile, OSError):
            return f"is an archive without its end: it is cut off; {AGAIN}"
        return None
    return None if start.startswith(b"\x80") else f"holds no weights of PyTorch; {AGAIN}"


def _json_fault(file: Path) -> str | None:
    try:
        value = json.loads(file.read_bytes())
    except UnicodeDecodeError:
        return f"is not text in UTF-8; {AGAIN}"
    except ValueError as error:
        return f"is no JSON ({error}); {AGAIN}"
    return None if isinstance(value, dict) else f"holds a JSON {type(value).__name__}, expected an object; {AGAIN}"


def _is_there(file: Path) -> bool:
    return file.is_file() or (file.is_symlink() and not file.exists())


def _few(names: Collection[str]) -> str:
    first, *rest = names
    return f"{first} and {len(rest)} more" if rest else first


def _is(names: Collection[str]) -> str:
    return "are" if len(names) > 1 else "is"
