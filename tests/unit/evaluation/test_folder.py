"""What an evaluation leaves in a folder, and when it may continue there."""

from __future__ import annotations

import json

import pytest

from astra_accel.evaluation.folder import EvaluationError, EvaluationFolder, differing

IDENTITY = {"seeds": ["a", "b"], "settings": {"rollout": {"tree_depth": 3}}}


def test_the_same_evaluation_may_go_on(tmp_path):
    folder = EvaluationFolder(tmp_path / "new" / "evaluation")
    folder.begin(IDENTITY)
    folder.write_part(1, [{"episode": 1}])
    folder.begin(IDENTITY)
    assert folder.whole_parts(3) == [1]
    assert folder.identity() == IDENTITY


def test_another_evaluation_is_refused_with_what_differs(tmp_path):
    folder = EvaluationFolder(tmp_path)
    folder.begin(IDENTITY)
    with pytest.raises(EvaluationError, match=r"number 2: 'b', now 'c'.*settings\.rollout\.tree_depth \(3, now 2\)"):
        folder.begin({"seeds": ["a", "c"], "settings": {"rollout": {"tree_depth": 2}}})
    folder.write_part(0, [{"episode": 0}])
    folder.write_metrics({"metrics": {}})
    folder.begin({"seeds": ["c"]}, overwrite=True)
    assert folder.whole_parts(1) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json"]


def test_an_evaluation_is_not_continued_with_another_number_of_tries(tmp_path):
    """One that doesn't say the number has one try."""
    single, several = EvaluationFolder(tmp_path / "single"), EvaluationFolder(tmp_path / "several")
    single.begin(IDENTITY)
    single.begin({**IDENTITY, "tries": 1})
    with pytest.raises(EvaluationError, match=r"tries \(1, now 4\)"):
        single.begin({**IDENTITY, "tries": 4})
    several.begin({**IDENTITY, "tries": 4})
    several.check({"settings": IDENTITY["settings"]})
    with pytest.raises(EvaluationError, match=r"tries \(4, now 1\)"):
        several.begin(IDENTITY)


def test_a_column_without_values_in_one_part_is_read_with_those_of_others(tmp_path):
    folder = EvaluationFolder(tmp_path)
    rows = [
        {"episode": 0, "category": None, "score": 0.5, "note": None},
        {"episode": 1, "category": "harm", "score": None, "note": None},
    ]
    for part, row in enumerate(rows):
        folder.write_part(part, [row])
    assert folder.rows() == rows


def test_nodes_of_nobody_knows_what_are_not_added_to(tmp_path):
    folder = EvaluationFolder(tmp_path)
    folder.write_part(0, [{"episode": 0}])
    with pytest.raises(EvaluationError, match=r"nodes, but no evaluation\.json"):
        folder.begin(IDENTITY)


def test_overwriting_leaves_what_is_not_its_own(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    EvaluationFolder(tmp_path).begin(IDENTITY, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_part_that_is_damaged_is_made_again(tmp_path):
    folder = EvaluationFolder(tmp_path)
    for number in range(3):
        folder.write_part(number, [{"episode": number}] * 50)
    whole = folder.part(1).read_bytes()
    folder.part(1).write_bytes(whole[: len(whole) // 2])
    folder.part(2).write_bytes(b"")
    assert folder.whole_parts(3) == [0]


def test_nodes_come_back_in_order_and_with_all_columns(tmp_path):
    folder = EvaluationFolder(tmp_path)
    folder.write_part(1, [{"episode": 1, "path": [0], "score": 0.5}])
    folder.write_part(0, [{"episode": 0, "path": [0], "score": None, "note": "é"}])
    rows = folder.rows()
    assert [row["episode"] for row in rows] == [0, 1]
    assert rows[0] == {"episode": 0, "path": [0], "score": None, "note": "é"}
    assert rows[1] == {"episode": 1, "path": [0], "score": 0.5, "note": None}
    folder.write_lines(rows)
    lines = (tmp_path / "nodes.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_figures_are_json_that_everyone_reads(tmp_path):
    folder = EvaluationFolder(tmp_path)
    folder.write_metrics({"metrics": {"a": {"value": None}}})
    assert folder.metrics() == {"metrics": {"a": {"value": None}}}
    with pytest.raises(ValueError, match="JSON"):
        folder.write_metrics({"a": float("nan")})


def test_a_folder_without_an_evaluation_is_named(tmp_path):
    folder = EvaluationFolder(tmp_path)
    for read in (folder.identity, folder.metrics, folder.rows):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            read()
    (tmp_path / "metrics.json").write_text('{"metrics": ')
    with pytest.raises(EvaluationError, match=r"metrics\.json is no JSON"):
        folder.metrics()


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {}, ["a (1, now None)"]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}}, ["a.b (1, now 3)"]),
        ({"a": [1, 2]}, {"a": [1]}, ["a (2, now 1)"]),
        ({"a": {"b": 1}}, {"a": None}, ["a ({'b': 1}, now None)"]),
    ],
)
def test_what_differs_is_named(before, now, expected):
    assert differing(before, now) == expected
