"""Reads the rows of a source, by column: a bundled list, a file, or a data set of the hub."""

from __future__ import annotations

import glob
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

BUNDLED, BENIGN = "bundled", "benign"
_LISTS = {BUNDLED: "prompts.jsonl", BENIGN: "benign.jsonl"}
"""The lists of the package, by name."""
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")

# How `datasets.Dataset` reads each kind of file. By default a CSV cell "NA" or "None" becomes a missing
# value; if every CSV line has one comma too many, the first cells become row names; and a parquet batch is
# as long as the first row group, which fails when that has no rows.
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("from_csv", {"keep_default_na": False, "index_col": False}),
    ".parquet": ("from_parquet", {"batch_size": 1000}),
    ".txt": ("from_text", {"encoding": "utf-8-sig"}),
}


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        name: the source, for messages.
        holds_strings: whether a column holds strings, by name.
        column: the values of a column, each with its row's number from 1, in the whole file or in the split of a hub
            data set.
    """

    name: str
    holds_strings: Mapping[str, bool]
    column: Callable[[str], list[tuple[int, Any]]]


def read_rows(name: str, split: str, config_name: str | None = None, revision: str | None = None) -> Rows:
    """The rows of a source.

    Raises:
        FileNotFoundError, ValueError: as for :func:`~astra_accel.data.load_prompts`.
    """
    if name not in _LISTS and not is_file_name(name):
        return _of_dataset(_load_dataset(name, split, config_name, revision), name)
    if config_name is not None or revision is not None:
        raise ValueError(
            f"prompts {name!r}: found config_name={config_name!r} and revision={revision!r}, "
            "expected neither: they choose among the versions of a data set on the hub"
        )
    return _of_splits(_bundled_splits(name) if name in _LISTS else {"train": _read_file(Path(name))}, split, name)


def is_file_name(name: str) -> bool:
    """Whether `name` refers to a local file, existing or not, rather than a folder or a data set on the hub."""
    path = Path(name)
    if path.is_dir():
        return False
    return (
        path.is_file() or path.suffix.lower() in FILE_SUFFIXES or path.is_absolute() or name.startswith(("./", "../"))
    )


def _of_splits(splits: Mapping[str, Rows], split: str, name: str) -> Rows:
    """The rows that a name of a split, or a slice, selects."""
    if split in splits:  # the usual case, which needs no import of `datasets`
        return splits[split]
    holds_strings: dict[str, bool] = {}
    for rows in splits.values():
        for column, is_string in rows.holds_strings.items():
            holds_strings[column] = holds_strings.get(column, False) or is_string
    return Rows(name, holds_strings, partial(_sliced, splits, split, name))


def _sliced(splits: Mapping[str, Rows], split: str, name: str, column: str) -> list[tuple[int, Any]]:
    from datasets import ReadInstruction

    columns = {key: rows.column(column) for key, rows in splits.items()}
    sizes = {key: len(values) for key, values in columns.items()}
    try:
        slices = ReadInstruction.from_spec(split).to_absolute(sizes)
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"prompts {name!r}: can't read the split {split!r} ({error}); splits found: {', '.join(sizes)}"
        ) from error
    return [row for part in slices for row in columns[part.splitname][part.from_ : part.to]]


def _bundled_splits(name: str) -> dict[str, Rows]:
    lines = files(__package__).joinpath(_LISTS[name]).read_text(encoding="utf-8").splitlines()
    splits: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, lines):
        splits.setdefault(row.get("split", "train"), []).append(row)
    return {split: _of_objects(rows, name) for split, rows in splits.items()}


def _read_file(path: Path) -> Rows:
    name, suffix = str(path), path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"prompts {name!r}: no such file or folder (looked for {str(path.resolve())!r})")
    if suffix not in FILE_SUFFIXES:
        expected = ", ".join(FILE_SUFFIXES)
        raise ValueError(f"prompts {name!r}: found the file suffix {suffix!r}, expected one of {expected}")
    if path.stat().st_size == 0:
        raise ValueError(f"prompts {name!r}: found an empty file, expected prompts")
    if suffix in (".json", ".jsonl"):
        return _of_objects(_json_rows(path), name)
    dataset = _file_dataset(path)
    if dataset is None:
        return _of_objects([], name)
    return _of_dataset(dataset, name, skips_blank=suffix == ".txt")


def _of_objects(objects: Sequence[Mapping[str, Any]], name: str) -> Rows:
    holds_strings: dict[str, bool] = {}
    for row in objects:
        for key, value in row.items():
            holds_strings[key] = holds_strings.get(key, False) or isinstance(value, str)
    return Rows(name, holds_strings, lambda column: list(enumerate([row.get(column) for row in objects], start=1)))


def _of_dataset(dataset: Any, name: str, *, skips_blank: bool = False) -> Rows:
    string_types = ("string", "large_string", "string_view")
    holds_strings = {key: getattr(feature, "dtype", None) in string_types for key, feature in dataset.features.items()}

    def column(column: str) -> list[tuple[int, Any]]:
        values = dataset.select_columns([column])[:][column]
        return list(enumerate([value for value in values if not skips_blank or value.strip()], start=1))

    return Rows(name, holds_strings, column)


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON list or of JSON lines; a plain string becomes a row with that text.

    Not read by `datasets`, which turns strings that look like dates into dates and does not say on which line
    a file is broken.
    """
    rows = []
    for number, item in enumerate(_json_items(path), start=1):
        row = {"text": item} if isinstance(item, str) else item
        if not isinstance(row, dict):
            raise ValueError(f"prompts {str(path)!r}: row {number} holds {fault(item)}, expected a string or an object")
        rows.append(row)
    return rows


def _json_items(path: Path) -> list[Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"prompts {str(path)!r}, line {line}: not UTF-8 ({error.reason})") from error
    # The first character tells a list from lines, not the suffix: both kinds occur with both suffixes.
    if text.lstrip().startswith("["):
        return _parsed_json(text, path, first_line=1)
    # Not `splitlines`, which also splits at separators that JSON strings may hold unescaped.
    lines = enumerate(text.split("\n"), start=1)
    return [_parsed_json(line, path, first_line=number) for number, line in lines if line.strip()]


def _parsed_json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(
            f"prompts {str(path)!r}, line {line}: not JSON ({error.msg}), "
            "expected a list, or on each line a string or an object"
        ) from error


def _file_dataset(path: Path) -> Any:
    """The rows of a file as a `datasets.Dataset`; None if it has none."""
    # Not `load_dataset`, which asks a server to count the download even for a local file.
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    reader, options = _READERS[path.suffix.lower()]
    # `datasets` treats file names as patterns, so a name with brackets has to be escaped.
    pattern = glob.escape(str(path.resolve()))
    # The cache would only duplicate the file, so it is deleted once the rows are in memory.
    with tempfile.TemporaryDirectory() as cache, _quiet_datasets(), warnings.catch_warnings():
        # pandas only warns when it drops cells beyond the header.
        warnings.filterwarnings("error", message="Length of header or names does not match length of data")
        try:
            return getattr(Dataset, reader)(pattern, cache_dir=cache, keep_in_memory=True, **options)
        except (DatasetsError, ValueError) as error:
            if "corresponds to no data" in str(error):  # all that `datasets` reports for a file without rows
                return None
            cause = str(error.__cause__ or error).strip()
            raise ValueError(f"prompts {str(path)!r}: can't be read as {path.suffix} ({cause})") from error


def _load_dataset(name: str, split: str, config_name: str | None, revision: str | None) -> Any:
    from datasets import config, load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(name, config_name, split=split, revision=revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"prompts {name!r}: {_line(error)}; expected {BUNDLED!r}, a file ({', '.join(FILE_SUFFIXES)}), "
            "a folder, or the id of a data set on the Hugging Face hub"
        ) from error
    except (DatasetsError, ValueError) as error:
        raise ValueError(f"prompts {name!r}, split {split!r}: {_line(error.__cause__ or error)}") from error
    except ConnectionError as error:
        raise ValueError(
            f"prompts {name!r}: {_line(error)}; {_why_unreachable()}, and it is not in the cache "
            f"{config.HF_DATASETS_CACHE}; expected {BUNDLED!r}, a file, a folder, or a data set that is there"
        ) from error
    except Exception as error:  # from the hub, a file's format, or an old data set that is a script
        raise ValueError(f"prompts {name!r}, split {split!r}: {type(error).__name__}: {_line(error)}") from error


def _why_unreachable() -> str:
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the network or the hub is away"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def fault(value: Any) -> str | None:
    """Why `value` can't be a prompt, or `None` if it can."""
    if value is None:
        return "no value"
    if not isinstance(value, str):
        return f"the {type(value).__name__} {short(value)}"
    if not value.strip():
        return f"the blank string {short(value)}"
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can hold half a character, which tokenizers reject without saying where it came from.
        return f"half a character (a lone surrogate) in {short(value)}"
    return None


def short(value: Any) -> str:
    """A value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Turn off the progress bars of `datasets`, unless its environment variable asks for them."""
    from datasets import config
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
