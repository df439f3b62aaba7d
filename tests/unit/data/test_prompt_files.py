"""Prompts from files and folders, each written to disk and read by `datasets`."""

import json
import re
import socket
import time
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astra_accel.data import check_disjoint, load_prompts

# What readers like to change: blanks at the ends, words for missing values, numbers, dates, quotes, lines.
PROMPTS = [" spaces stay ", "NA", "None", "12", "2024-01-01", 'a, "quoted" b', "hé 🙂 \u2028 x", "NA"]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_json_lines(path: Path, rows: list) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_prompts(path: Path, prompts: list[str]) -> Path:
    """`prompts` as a column "text", in the format that the suffix of `path` says."""
    rows = [{"text": prompt} for prompt in prompts]
    match path.suffix:
        case ".json":
            write(path, json.dumps(rows, indent=1))
        case ".jsonl":
            write_json_lines(path, rows)
        case ".csv":
            datasets.Dataset.from_list(rows).to_pandas().to_csv(path, index=False)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".txt":
            write(path, "\n".join(prompts))
    return path


FORMATS = ["json", "jsonl", "csv", "parquet", "txt"]


@pytest.fixture
def in_cache_home(tmp_path_factory, monkeypatch) -> Path:
    """The folder that `datasets` caches in by default."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


@pytest.mark.parametrize("suffix", FORMATS)
def test_prompts_come_back_unchanged(suffix, tmp_path):
    path = write_prompts(tmp_path / f"prompts.{suffix}", PROMPTS)
    assert load_prompts(path) == PROMPTS
    assert load_prompts(str(path), split="train[25%:]") == PROMPTS[2:]
    assert load_prompts(path, split="train[-1:]", column="text") == PROMPTS[-1:]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_prompt_of_several_lines(suffix, tmp_path):
    path = write_prompts(tmp_path / f"prompts.{suffix}", ["one\ntwo", "three"])
    assert load_prompts(path) == (["one", "two", "three"] if suffix == "txt" else ["one\ntwo", "three"])


@pytest.mark.parametrize("suffix", FORMATS)
def test_reading_leaves_nothing_behind(suffix, tmp_path, in_cache_home, capfd):
    assert not datasets.utils.are_progress_bars_disabled()
    load_prompts(write_prompts(tmp_path / f"prompts.{suffix}", PROMPTS))
    assert capfd.readouterr() == ("", "")
    assert not datasets.utils.are_progress_bars_disabled()
    assert list(in_cache_home.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == [f"prompts.{suffix}"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_reading_a_file_asks_no_server(suffix, tmp_path, monkeypatch):
    looked_up = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: looked_up.append(args) or [])
    load_prompts(write_prompts(tmp_path / f"prompts.{suffix}", PROMPTS), split="train[:50%]")
    assert looked_up == []


def test_progress_bars_stay_disabled(tmp_path):
    datasets.disable_progress_bars()
    try:
        load_prompts(write_prompts(tmp_path / "prompts.csv", ["hello"]))
        assert datasets.utils.are_progress_bars_disabled()
    finally:
        datasets.enable_progress_bars()


def test_progress_bars_come_back_after_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"can't be read as \.parquet"):
        load_prompts(write(tmp_path / "prompts.parquet", "not parquet"))
    assert not datasets.utils.are_progress_bars_disabled()


@pytest.mark.parametrize("name", ["with [brackets] and *.csv", "with spaces.txt", "UPPER.CSV", "sub.dir.jsonl"])
def test_odd_file_names(name, tmp_path):
    text = json.dumps({"text": "hello"}) if name.endswith("jsonl") else "text\nhello\n"
    assert load_prompts(write(tmp_path / name, text))[-1] == "hello"


def test_relative_and_home_paths(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "hello\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_prompts("a.txt") == load_prompts("./a.txt") == load_prompts("~/a.txt") == ["hello"]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        '["one", "two"]',
        '\n[\n  "one",\n  "two"\n]\n',
        '[{"text": "one"}, {"text": "two"}]',
        '{"text": "one"}\n{"text": "two"}',
        '"one"\n\n"two"\n',
        '\ufeff["one", "two"]',
        '"one"\r\n"two"\r\n',
    ],
)
def test_layouts_of_json(suffix, content, tmp_path):
    assert load_prompts(write(tmp_path / f"prompts.{suffix}", content)) == ["one", "two"]


def test_text_skips_blank_lines(tmp_path):
    path = write(tmp_path / "prompts.txt", "\ufeff\none\r\n\n   \n two \n\n")
    assert load_prompts(path) == ["one", " two "]
    assert load_prompts(path, split="train[:50%]") == ["one"]


# Columns


def test_text_comes_before_prompt_and_other_columns(tmp_path):
    rows = [{"id": "x", "prompt": "b", "text": "a"}]
    path = write_json_lines(tmp_path / "prompts.jsonl", rows)
    assert load_prompts(path) == ["a"]
    assert load_prompts(path, column="id") == ["x"]


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
@pytest.mark.parametrize(("row", "expected"), [({"id": "x", "prompt": "b"}, "b"), ({"n": 3, "question": "c"}, "c")])
def test_column_is_found(suffix, row, expected, tmp_path):
    path = tmp_path / f"prompts.{suffix}"
    table = pa.Table.from_pylist([row])
    if suffix == "json":
        write(path, json.dumps([row]))
    elif suffix == "csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        pq.write_table(table, path)
    assert load_prompts(path) == [expected]


def test_wide_strings_of_parquet_are_strings(tmp_path):
    column = pa.array(["hello"], pa.large_string())
    pq.write_table(pa.table({"question": column, "n": [1]}), tmp_path / "a.parquet")
    assert load_prompts(tmp_path / "a.parquet") == ["hello"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_ambiguous_columns(suffix, tmp_path):
    content = {"jsonl": '{"question": "a", "n": 1, "answer": "b"}\n', "csv": "question,n,answer\na,1,b\n"}
    path = write(tmp_path / f"prompts.{suffix}", content[suffix])
    message = f"{re.escape(str(path))}.*can't tell.*columns found: 'question', 'n', 'answer'; expected 'text'"
    with pytest.raises(ValueError, match=message):
        load_prompts(path)


def test_no_column_of_strings(tmp_path):
    with pytest.raises(ValueError, match=r"can't tell.*columns found: 'n'"):
        load_prompts(write(tmp_path / "prompts.csv", "n\n1\n"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_missing_column(suffix, tmp_path):
    path = write_prompts(tmp_path / f"prompts.{suffix}", ["hello"])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*no column 'body'; columns found: 'text'"):
        load_prompts(path, column="body")


# Rows that can't be prompts


def error_of(path: Path, **options) -> str:
    """The message of the `ValueError`, which must name the file."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        load_prompts(path, **options)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("blank", ["", "  \t"])
def test_blank_prompt(suffix, blank, tmp_path):
    path = tmp_path / f"prompts.{suffix}"
    if suffix == "csv":
        write(path, f"text,n\none,1\ntwo,2\n{blank},3\n")
    else:
        write_prompts(path, ["one", "two", blank])
    assert f"row 3 holds the blank string {blank!r}, expected a string" in error_of(path)
    # Rows are counted in the whole file, and only those that are asked for have to be sound.
    assert "row 3" in error_of(path, split="train[1:]")
    assert load_prompts(path, split="train[:2]") == ["one", "two"]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (["one", 2], "row 2 holds the int 2"),
        (["one", ["two"]], "row 2 holds the list ['two']"),
        (["one", None], "row 2 holds no value"),
        (["one", " "], "row 2 holds the blank string ' '"),
        ([{"text": "one"}, {"text": 2}], "row 2 holds the int 2"),
        ([{"text": "one"}, {"text": None}], "row 2 holds no value"),
        ([{"text": "one"}, {"txet": "two"}], "row 2 holds no value"),
        ([{"text": 1, "id": "x"}], "row 1 holds the int 1"),
        ([{"text": ["one", "two"]}], "row 1 holds the list ['one', 'two']"),
        ([{"text": ["x" * 200]}], f"row 1 holds the list ['{'x' * 75}..., expected"),
    ],
)
def test_not_a_string_in_json(rows, found, tmp_path):
    assert found in error_of(write(tmp_path / "prompts.json", json.dumps(rows)))


def test_not_a_string_in_json_lines(tmp_path):
    path = write_json_lines(tmp_path / "prompts.jsonl", [{"text": "one"}, {"text": 2}])
    assert "row 2 holds the int 2" in error_of(path)
    assert "row 2 holds the list ['two']" in error_of(write_json_lines(path, ["one", ["two"]]))


def test_half_a_character(tmp_path):
    path = write(tmp_path / "prompts.jsonl", '{"text": "one"}\n{"text": "cut \\ud83d"}\n')
    assert r"row 2 holds half a character (a lone surrogate) in 'cut \ud83d'" in error_of(path)


def test_not_a_string_in_parquet(tmp_path):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"text": ["one", None]}), path)
    assert "row 2 holds no value" in error_of(path)
    pq.write_table(pa.table({"text": [7, 8]}), path)
    assert "row 1 holds the int 7" in error_of(path)


def test_missing_cell_of_csv(tmp_path):
    path = write(tmp_path / "prompts.csv", "n,text\n1,one\n2\n")
    assert "row 2 holds" in error_of(path)


# Files that can't be read


@pytest.mark.parametrize("name", ["gone.json", "gone.parquet", "folder/gone.txt", "gone"])
def test_missing_file(name, tmp_path):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        load_prompts(path)


def test_missing_relative_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"'gone.csv': no such file.*{re.escape(str(tmp_path))}"):
        load_prompts("gone.csv")


@pytest.mark.parametrize("suffix", FORMATS)
def test_empty_file(suffix, tmp_path):
    assert "found an empty file" in error_of(write(tmp_path / f"prompts.{suffix}", ""))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "[]"), ("a.json", "\n\n"), ("a.jsonl", "\n"), ("a.csv", "text,n\n"), ("a.txt", "\n  \n")],
)
def test_no_rows(name, content, tmp_path):
    assert "no rows in the split 'train'" in error_of(write(tmp_path / name, content))


def test_no_rows_in_parquet(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "no rows in the split 'train'" in error_of(tmp_path / "a.parquet")


def test_no_rows_in_slice(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\n")
    assert "no rows in the split 'train[:0]'" in error_of(path, split="train[:0]")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_has_no_split_but_train(suffix, tmp_path):
    path = write_prompts(tmp_path / f"prompts.{suffix}", ["hello"])
    message = error_of(path, split="test[:50%]")
    assert "'test[:50%]'" in message
    assert message.endswith("splits found: train")


@pytest.mark.parametrize("name", ["prompts.tsv", "prompts", "prompts.json.gz"])
def test_unsupported_suffix(name, tmp_path):
    message = error_of(write(tmp_path / name, "hello"))
    assert f"found the file suffix {Path(name).suffix!r}, expected one of .json, .jsonl, .csv" in message


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"text": "one"}\n\n{"text": \n', 3),
        ('[\n"one",\n"two"\n"three"]', 4),
        ('{\n"text": "one"\n}', 1),
        ("hello", 1),
        (b'{"text": "one"}\n{"text": "h\xe9"}', 2),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_broken_json(content, line, suffix, tmp_path):
    path = write(tmp_path / f"prompts.{suffix}", content)
    assert re.search(rf"{re.escape(str(path))}', line {line}: not (JSON|UTF-8) \(", error_of(path))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        # An unquoted comma: in some lines, then in all of them, where pandas would drop a part of each.
        ("text\none\ntwo, three\n", "Expected 1 fields in line 3, saw 2"),
        ("text\none, two\nthree, four\n", "Length of header or names does not match"),
        ("text\nh\xe9".encode("latin-1"), "can't decode byte 0xe9"),
    ],
)
def test_broken_csv(content, found, tmp_path):
    message = error_of(write(tmp_path / "prompts.csv", content))
    assert "can't be read as .csv" in message
    assert found in message


def test_broken_text(tmp_path):
    assert "can't be read as .txt" in error_of(write(tmp_path / "prompts.txt", "h\xe9".encode("latin-1")))


def test_a_file_has_no_versions(tmp_path):
    path = write(tmp_path / "prompts.txt", "hello")
    assert "revision='main', expected neither" in error_of(path, revision="main")


# What `datasets.load_dataset` takes


@pytest.fixture
def folder(tmp_path, in_cache_home) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    write_json_lines(path / "train.jsonl", [{"id": str(i), "text": f"prompt {i}"} for i in range(10)])
    write_json_lines(path / "test.jsonl", [{"id": "a", "text": "held out"}, {"id": "b", "text": " "}])
    return path


def test_folder(folder):
    assert load_prompts(folder) == [f"prompt {i}" for i in range(10)]
    assert load_prompts(str(folder), split="train[80%:]", column="id") == ["8", "9"]
    assert load_prompts(folder, split="test[:1]") == ["held out"]


def test_errors_of_folder(folder):
    assert "row 2 holds the blank string ' '" in error_of(folder, split="test")
    assert re.search(r"'dev'.*Should be one of \['train', 'test'\]", error_of(folder, split="dev"))
    assert "no column 'body'; columns found: 'id', 'text'" in error_of(folder, column="body")
    assert "'en' not found" in error_of(folder, config_name="en")


def test_folder_without_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tmp_path))}.*expected 'bundled', a file"):
        load_prompts(tmp_path)


def test_hub_options_reach_datasets(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_dict({"prompt": ["hello"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_prompts("user/name", split="dev", config_name="en", revision="v1") == ["hello"]
    assert calls == [(("user/name", "en"), {"split": "dev", "revision": "v1"})]


def test_a_data_set_of_the_hub_offline_is_told_without_another_try(monkeypatch):
    def sleep(_):
        raise AssertionError("waited for another try")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(ValueError, match=r"prompts 'someone/prompts': .*HF_HUB_OFFLINE is set, and it is not") as error:
        load_prompts("someone/prompts")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raised", "kind", "found"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("'a/b' is a gated\ndataset"),
            FileNotFoundError,
            "is a gated dataset",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), ValueError, "RuntimeError: Dataset scripts are no"),
        (OSError("504 Server Error:\nGateway Time-out"), ValueError, "OSError: 504 Server Error: Gateway Time-out"),
        (ConnectionError("Couldn't reach 'a/b'"), ValueError, "Couldn't reach 'a/b'; "),
    ],
)
def test_what_the_hub_answers_is_one_line_with_the_data_sets_name(monkeypatch, raised, kind, found):
    def load_dataset(*_, **__):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(kind) as error:
        load_prompts("a/b")
    assert str(error.value).startswith("prompts 'a/b'")
    assert found in str(error.value)
    assert "\n" not in str(error.value)


# Held-out prompts


def test_disjoint():
    check_disjoint(["a", "b", "b"], ["c", "B", "a "], ("train", "dev"))
    check_disjoint([], [], ("train", "dev"))


def test_not_disjoint():
    message = r"^2 of the dev prompts stand in the train prompts too, expected none; the first is 'c'$"
    with pytest.raises(ValueError, match=message):
        check_disjoint(["a", "b", "c"], ["x", "c", "a", "c"], ("train", "dev"))
