"""What a run's conversations become as a data set: by hand, and as ``datasets`` reads it."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from astra_accel.errors import SharingError
from astra_accel.files.tables import write_table
from astra_accel.sharing import rollouts
from astra_accel.sharing.dataset_card import export_dataset
from astra_accel.sharing.rollouts import export_rollouts


def load(folder, name, split, cache):
    return load_dataset(str(folder), name, split=split, cache_dir=str(cache)).to_list()


@pytest.mark.parametrize("jsonl", [False, True])
def test_a_run_is_a_data_set(make_run, tmp_path, jsonl):
    export_dataset(make_run(), tmp_path / "data", jsonl=jsonl)

    rows = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache")).to_list()

    # Parents before children, level by level, as rollouts are written.
    places = [(row["step"], row["episode"], row["turn"], row["node"], row["parent"]) for row in rows]
    assert places == [
        (1, 0, 1, "1/0/0", None),
        (1, 0, 1, "1/0/1", None),
        (1, 0, 2, "1/0/0.0", "1/0/0"),
        (1, 1, 1, "1/1/0", None),
        (2, 0, 1, "2/0/0", None),
        (2, 0, 1, "2/0/1", None),
        (2, 0, 2, "2/0/0.0", "2/0/0"),
    ]
    assert [row["reward"] for row in rows] == [1.5, None, 0.5, -1.0, 1.5, None, 0.5]
    assert [row["response_score"] for row in rows] == [0.3, None, None, 0.1, 0.3, None, None]
    assert [row["probe"] for row in rows[:4]] == [" a", " half ?", "c", "f"]
    assert [row["context"] for row in rows[:4]] == ["Good morning."] * 2 + ["Good morning. ab", "It rains."]
    assert [row["probe_tokens"] for row in rows[:4]] == [None, None, None, 3]
    assert [row["kinds"] for row in rows[:2]] == [None, "[1, 2]"]


def test_the_schema_is_flat_and_that_of_the_card(make_run, tmp_path):
    (split,) = export_dataset(make_run(), tmp_path / "data")

    schema = pq.read_schema(tmp_path / "data" / "data" / "rollouts-00000.parquet")
    assert schema.names[:9] == ["step", "episode", "turn", "node", "parent", "context", "probe", "response", "reward"]
    assert {field.name: field.type for field in schema if field.name not in rollouts.FIELDS} == {
        "response_score": pa.float64(),
        "probe_tokens": pa.int64(),
        "kinds": pa.string(),
    }
    assert (split.num_rows, split.num_missing) == (7, 2)
    card = DatasetCard.load(tmp_path / "data" / "README.md")
    assert [feature["name"] for feature in card.data.dataset_info[0]["features"]] == schema.names
    assert card.data.size_categories == ["n<1K"]
    assert "7 turns, 2 of them without a reward" in card.text


def test_an_evaluation_is_a_configuration_of_its_own(make_run, evaluated, tmp_path):
    run = make_run()
    evaluated(run)

    export_dataset(run, tmp_path / "data")

    held_out = load(tmp_path / "data", "evaluation", "test", tmp_path / "cache")
    assert len(held_out) == 12 * 14
    assert "step" not in held_out[0]
    assert (held_out[13]["node"], held_out[13]["parent"]) == ("0/1.1.1", "0/1.1")
    assert len(load(tmp_path / "data", "rollouts", "train", tmp_path / "cache")) == 7


def test_many_nodes_go_through_a_few_at_a_time(tmp_path, monkeypatch):
    """100,000 nodes in 4 files, to files of at most 30,000."""
    rows = [
        {
            "step": 1,
            "episode": index // 100,
            "path": [index % 100],
            "turn": 1,
            "context": "c",
            "probe": f"probe {index}",
            "response": "r",
            "reward": float(index),
        }
        for index in range(25_000)
    ]
    for step in range(1, 5):
        write_table(tmp_path / "run" / "rollouts" / f"step-{step:06d}.parquet", [row | {"step": step} for row in rows])
    monkeypatch.setattr(rollouts, "ROWS_A_FILE", 30_000)
    sizes, write = [], rollouts._Writer.write

    def record(self, table):
        sizes.append(table.num_rows)
        write(self, table)

    monkeypatch.setattr(rollouts._Writer, "write", record)

    (split,) = export_rollouts(tmp_path / "run", tmp_path / "data")

    assert split.num_rows == sum(sizes) == 100_000
    assert max(sizes) <= rollouts.ROWS_AT_ONCE
    files = sorted((tmp_path / "data" / "data").iterdir())
    counts = [pq.read_metadata(file).num_rows for file in files]
    assert max(counts) <= 30_000
    assert len(files) == 4
    nodes = pa.concat_tables(pq.read_table(file, columns=["node", "reward"]) for file in files)
    assert len(set(nodes["node"].to_pylist())) == 100_000
    assert nodes["reward"].to_pylist() == [float(index) for index in range(25_000)] * 4


def test_a_folder_that_holds_something_is_left_alone(make_run, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")

    with pytest.raises(SharingError, match="data already exists and is not empty"):
        export_rollouts(make_run(), tmp_path / "data")

    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_what_fails_leaves_nothing_behind(make_run, tmp_path):
    run = make_run()
    (run / "rollouts" / "step-000002.parquet").write_bytes(b"no parquet")

    with pytest.raises(pa.ArrowInvalid):
        export_rollouts(run, tmp_path / "data")

    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_without_conversations_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has neither rollouts/step-\*\.parquet nor an evaluation's"):
        export_rollouts(tmp_path, tmp_path / "data")


def test_lines_of_json_are_json(make_run, tmp_path):
    export_rollouts(make_run(), tmp_path / "data", jsonl=True)

    lines = (tmp_path / "data" / "data" / "rollouts-00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["node"] for line in lines][:2] == ["1/0/0", "1/0/1"]
