"""Read prompts, the openings that conversations start from, and check every one of them.

The steps are the same for every source: read all values of one column, take the rows of the requested split,
then check that each is a non-blank string.
"""

from __future__ import annotations

import glob
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

BUNDLED = "bundled"
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
USUAL_COLUMNS = ("text", "prompt")

# How `datasets.Dataset` reads each kind of file. By default a CSV cell "NA" or "None" becomes a missing
# value; if every CSV line has one comma too many, the first cells become row names; and a parquet batch is
# as long as the first row group, which fails when that has no rows.
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("from_csv", {"keep_default_na": False, "index_col": False}),
    ".parquet": ("from_parquet", {"batch_size": 1000}),
    ".txt": ("from_text", {"encoding": "utf-8-sig"}),
}


def load_prompts(
    source: str | os.PathLike[str] = BUNDLED,
    *,
    split: str = "train",
    column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> list[str]:
    """Load the prompts of one split, in order and unchanged: nothing is stripped, duplicates are kept.

    Args:
        source: One of

            - `"bundled"`: this package's neutral openings, in the splits train, dev, test.
            - A local file. `json`: a list of strings or of objects; `jsonl`: a string or an object per line;
              `csv`: with a header line; `parquet`; `txt`: a prompt per line, where blank lines only separate
              and are skipped. A file has one split, "train", which is all of it. Nothing is cached.
            - Anything else that `datasets.load_dataset` takes: the id of a data set on the Hugging Face hub, or a
              local folder. These are cached in the cache of `datasets`.
        split: The name of a split, or a slice in the syntax of `datasets`, such as `"train[:80%]"`.
        column: The column that holds the prompts. By default "text" if there is such a column, else "prompt",
            else the only column that holds strings.
        config_name: The configuration of a hub data set or a folder.
        revision: The branch, tag or commit of a hub data set.

    Raises:
        FileNotFoundError: There is no such file, folder or data set.
        ValueError: The file is empty, can't be read or has another suffix; a data set can't be reached; there is no
            such split or column, or the column is ambiguous; the split has no rows; a prompt is not a string, or is
            blank (the message gives its row, counted from 1, in the whole file or in the split of a hub data set);
            `config_name` or `revision` is given for the bundled list or for a file, which have neither.
    """
    name = os.path.expanduser(os.fspath(source))
    if name != BUNDLED and not is_file_name(name):
        values = _load_dataset_column(name, split, column, config_name, revision)
        return _checked_prompts(enumerate(values, start=1), split, name)
    if config_name is not None or revision is not None:
        raise ValueError(
            f"prompts {name!r}: found config_name={config_name!r} and revision={revision!r}, "
            "expected neither: they choose among the versions of a data set on the hub"
        )
    columns = _bundled_splits(column) if name == BUNDLED else {"train": _file_column(Path(name), column)}
    return _checked_prompts(_rows_of_split(columns, split, name), split, name)


def check_disjoint(train: Iterable[str], held_out: Iterable[str], names: tuple[str, str]) -> None:
    """Check that no held-out prompt is trained on.

    Args:
        train: The prompts to train on.
        held_out: The prompts that training must never see.
        names: What to call the two in the message, such as `("train", "dev")`.

    Raises:
        ValueError: Some prompts are in both; the message gives the first of them and their number.
    """
    seen = set(train)
    # A dict, because sets have no order and the message names the first.
    shared = list(dict.fromkeys(prompt for prompt in held_out if prompt in seen))
    if shared:
        raise ValueError(
            f"{len(shared)} of the {names[1]} prompts stand in the {names[0]} prompts too, expected none; "
            f"the first is {_short(shared[0])}"
        )


def is_file_name(name: str) -> bool:
    """Whether `name` refers to a local file, existing or not, rather than a folder or a data set on the hub."""
    path = Path(name)
    if path.is_dir():
        return False
    return (
        path.is_file() or path.suffix.lower() in FILE_SUFFIXES or path.is_absolute() or name.startswith(("./", "../"))
    )


def _bundled_splits(column: str | None) -> dict[str, list[Any]]:
    lines = files(__package__).joinpath("prompts.jsonl").read_text(encoding="utf-8").splitlines()
    splits: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, lines):
        splits.setdefault(row["split"], []).append(row)
    return {split: _column_of_rows(rows, column, BUNDLED) for split, rows in splits.items()}


def _file_column(path: Path, column: str | None) -> Sequence[Any]:
    name, suffix = str(path), path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"prompts {name!r}: no such file or folder (looked for {str(path.resolve())!r})")
    if suffix not in FILE_SUFFIXES:
        expected = ", ".join(FILE_SUFFIXES)
        raise ValueError(f"prompts {name!r}: found the file suffix {suffix!r}, expected one of {expected}")
    if path.stat().st_size == 0:
        raise ValueError(f"prompts {name!r}: found an empty file, expected prompts")
    if suffix in (".json", ".jsonl"):
        return _column_of_rows(_json_rows(path), column, name)
    values = _datasets_file_column(path, column)
    return [value for value in values if value.strip()] if suffix == ".txt" else values


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON list or of JSON lines; a plain string becomes a row with that text.

    Not read by `datasets`, which turns strings that look like dates into dates and does not say on which line
    a file is broken.
    """
    rows = []
    for number, item in enumerate(_json_items(path), start=1):
        row = {"text": item} if isinstance(item, str) else item
        if not isinstance(row, dict):
            raise ValueError(
                f"prompts {str(path)!r}: row {number} holds {_fault(item)}, expected a string or an object"
            )
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


def _column_of_rows(rows: Sequence[Mapping[str, Any]], column: str | None, name: str) -> list[Any]:
    if not rows:
        return []
    holds_strings: dict[str, bool] = {}
    for row in rows:
        for key, value in row.items():
            holds_strings[key] = holds_strings.get(key, False) or isinstance(value, str)
    chosen = _chosen_column(holds_strings, column, name)
    return [row.get(chosen) for row in rows]


def _datasets_file_column(path: Path, column: str | None) -> Sequence[Any]:
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
            dataset = getattr(Dataset, reader)(pattern, cache_dir=cache, keep_in_memory=True, **options)
        except (DatasetsError, ValueError) as error:
            if "corresponds to no data" in str(error):  # all that `datasets` reports for a file without rows
                return []
            cause = str(error.__cause__ or error).strip()
            raise ValueError(f"prompts {str(path)!r}: can't be read as {path.suffix} ({cause})") from error
    return _column_of_dataset(dataset, column, str(path))


def _load_dataset_column(
    name: str, split: str, column: str | None, config_name: str | None, revision: str | None
) -> Sequence[Any]:
    from datasets import config, load_dataset
    from datasets.exceptions import DatasetsError

    try:
        dataset = load_dataset(name, config_name, split=split, revision=revision)
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
    return _column_of_dataset(dataset, column, name)


def _why_unreachable() -> str:
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the network or the hub is away"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _column_of_dataset(dataset: Any, column: str | None, name: str) -> Sequence[Any]:
    string_types = ("string", "large_string", "string_view")
    holds_strings = {key: getattr(feature, "dtype", None) in string_types for key, feature in dataset.features.items()}
    chosen = _chosen_column(holds_strings, column, name)
    return dataset.select_columns([chosen])[:][chosen]


def _chosen_column(holds_strings: Mapping[str, bool], column: str | None, name: str) -> str:
    """Choose the column of the prompts, given which columns hold strings."""
    found = ", ".join(map(repr, holds_strings)) or "none"
    if column is not None:
        if column not in holds_strings:
            raise ValueError(f"prompts {name!r}: no column {column!r}; columns found: {found}")
        return column
    # The usual names come first, whatever they hold: if a broken "text" were skipped in favour of the only sound
    # column, a run would start from that column's ids or labels.
    for usual in USUAL_COLUMNS:
        if usual in holds_strings:
            return usual
    of_strings = [key for key, is_string in holds_strings.items() if is_string]
    if len(of_strings) != 1:
        raise ValueError(
            f"prompts {name!r}: can't tell which column holds the prompts; columns found: {found}; "
            f"expected {' or '.join(map(repr, USUAL_COLUMNS))}, or just one column of strings; "
            "name the right one with `column`"
        )
    return of_strings[0]


def _rows_of_split(columns: Mapping[str, Sequence[Any]], split: str, name: str) -> list[tuple[int, Any]]:
    """The values that `split` selects, each with its row number in its split."""
    if split in columns:  # the usual case, which needs no import of `datasets`
        return list(enumerate(columns[split], start=1))
    from datasets import ReadInstruction

    sizes = {key: len(values) for key, values in columns.items()}
    try:
        slices = ReadInstruction.from_spec(split).to_absolute(sizes)
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"prompts {name!r}: can't read the split {split!r} ({error}); splits found: {', '.join(sizes)}"
        ) from error
    rows = []
    for part in slices:
        numbered = list(enumerate(columns[part.splitname], start=1))
        rows += numbered[part.from_ : part.to]
    return rows


def _checked_prompts(rows: Iterable[tuple[int, Any]], split: str, name: str) -> list[str]:
    prompts = []
    for number, value in rows:
        fault = _fault(value)
        if fault is not None:
            raise ValueError(f"prompts {name!r}: row {number} holds {fault}, expected a string of text")
        prompts.append(value)
    if not prompts:
        raise ValueError(f"prompts {name!r}: no rows in the split {split!r}, expected at least one prompt")
    return prompts


def _fault(value: Any) -> str | None:
    """Why `value` can't be a prompt, or `None` if it can."""
    if value is None:
        return "no value"
    if not isinstance(value, str):
        return f"the {type(value).__name__} {_short(value)}"
    if not value.strip():
        return f"the blank string {_short(value)}"
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can hold half a character, which tokenizers reject without saying where it came from.
        return f"half a character (a lone surrogate) in {_short(value)}"
    return None


def _short(value: Any) -> str:
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
