"""Two testers on the same prompts: paired differences, and what can't be compared."""

from __future__ import annotations

import json

import numpy as np
import pytest

from astra_accel.evaluation.compare import compare
from astra_accel.evaluation.display import show_comparison
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.summary import summarize
from astra_accel.evaluation.folder import EvaluationError, EvaluationFolder

PROMPTS = [f"prompt {index}" for index in range(20)]
EASE = np.random.default_rng(0).random(20)


def write(path, prompts=PROMPTS, harder=0.0, threshold=0.5, ended=True, missing=(), goals=None, **identity):
    """An evaluation of one turn, in which a prompt's response scores how easy the prompt is."""
    folder = EvaluationFolder(path)
    ease = dict(zip(PROMPTS, EASE - np.array(harder), strict=True))
    folder.begin(
        {
            "seeds": prompts,
            "scorers": {"reward": "Profanity"},
            "tree_width": 1,
            "tree_depth": 1,
            "settings": {"tester": {"path": path.name}, "scorer": {"name": "profanity"}},
            **identity,
        }
    )
    rows = [
        {
            "episode": episode,
            "turn": 1,
            "probe": f"{path.name} says {episode}",
            "reward": 1.0,
            "response_score": None if prompt in missing else float(ease.get(prompt, 0.0)),
            **({} if goals is None else goals[episode]),
        }
        for episode, prompt in enumerate(prompts)
    ]
    folder.write_part(0, rows)
    if ended:
        folder.write_metrics(summarize(Nodes.from_rows(rows, len(prompts)), threshold=threshold, num_resamples=20))
    return path


def test_the_difference_is_paired_by_prompt(tmp_path):
    """0.1 less on every prompt: sure of that, however much prompts differ. The second has them in another order."""
    found = compare(write(tmp_path / "a"), write(tmp_path / "b", PROMPTS[::-1], harder=0.1), num_resamples=200)
    score = found["metrics"]["response_score/mean"]
    assert score["first"] == pytest.approx(EASE.mean())
    assert score["second"] == pytest.approx(EASE.mean() - 0.1)
    assert [score["difference"][end] for end in ("value", "low", "high")] == pytest.approx([-0.1] * 3)
    success = found["metrics"]["attack_success/any_turn"]
    assert success["difference"]["value"] == pytest.approx(((EASE - 0.1) >= 0.5).mean() - (EASE >= 0.5).mean())
    assert success["difference"]["low"] < success["difference"]["value"] < 0
    assert found["num_episodes"] == 20
    assert found["differing"] == ["tester.path ('a', now 'b')"]
    json.dumps(found, allow_nan=False)


def test_categories_of_prompts_are_compared_each_on_its_own(tmp_path, capsys, monkeypatch):
    """Of the prompts with an even number, all that succeeded fail; the others stay as they were."""
    kinds = ["even", "odd"] * 10
    goals = [{"goal": f"goal {episode}", "category": kind} for episode, kind in enumerate(kinds)]
    lower = [0.9 if kind == "even" else 0.0 for kind in kinds]
    first = write(tmp_path / "a", goals=goals)
    second = write(tmp_path / "b", harder=lower, goals=goals)
    found = compare(first, second, num_resamples=50)
    rows = {row["category"]: row for row in found["by_category"]}
    assert {name: (row["num_goals"], row["num_prompts"]) for name, row in rows.items()} == {
        "even": (10, 10),
        "odd": (10, 10),
    }
    before = {kind: float(np.mean(EASE[place::2] >= 0.5)) for place, kind in enumerate(("even", "odd"))}
    assert rows["even"]["attack_success"]["first"] == pytest.approx(before["even"])
    assert rows["even"]["attack_success"]["difference"]["value"] == pytest.approx(-before["even"])
    assert rows["odd"]["attack_success"]["difference"]["value"] == 0
    monkeypatch.setenv("COLUMNS", "200")
    show_comparison(found)
    assert "attack success by category of the prompts" in capsys.readouterr().out
    assert "by_category" not in compare(write(tmp_path / "c"), write(tmp_path / "d"), num_resamples=20)


def test_a_tester_against_itself(tmp_path):
    found = compare(write(tmp_path / "a"), write(tmp_path / "b"), threshold=0.9, num_resamples=50)
    assert found["threshold"] == 0.9
    # Wilson's upper end of 0 of 20 prompts on which they differ.
    same = {"value": 0.0, "low": -0.1611, "high": 0.1611}
    assert found["metrics"]["attack_success/any_turn"]["difference"] == pytest.approx(same, abs=1e-4)
    assert found["metrics"]["diversity/self_bleu"]["difference"]["value"] == pytest.approx(0.0)


def test_different_prompts_are_refused_with_the_difference(tmp_path):
    other = write(tmp_path / "b", [*PROMPTS[:-2], "something else"])
    with pytest.raises(EvaluationError) as refused:
        compare(write(tmp_path / "a"), other)
    assert f"2 are in {tmp_path / 'a'} alone ('prompt 18', 'prompt 19')" in str(refused.value)
    assert f"1 are in {tmp_path / 'b'} alone ('something else')" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scorers": {"reward": "Detoxify"}}, r"scorers\.reward \('Profanity', now 'Detoxify'\)"),
        ({"tree_depth": 2}, r"tree_depth \(1, now 2\)"),
        ({"settings": {"scorer": {"name": "profanity", "options": {"batch_size": 2}}}}, r"scorer\.options"),
    ],
)
def test_figures_that_mean_something_else_are_refused(tmp_path, change, message):
    with pytest.raises(EvaluationError, match=message):
        compare(write(tmp_path / "a"), write(tmp_path / "b", **change))


def test_two_thresholds_are_refused_unless_one_is_given(tmp_path):
    folders = write(tmp_path / "a"), write(tmp_path / "b", threshold=0.7)
    with pytest.raises(EvaluationError, match=r"threshold 0\.5, .* with 0\.7"):
        compare(*folders)
    assert compare(*folders, threshold=0.7, num_resamples=20)["threshold"] == 0.7


def test_an_evaluation_that_has_not_ended_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no metrics\.json in {tmp_path / 'b'}"):
        compare(write(tmp_path / "a"), write(tmp_path / "b", ended=False))
    with pytest.raises(FileNotFoundError, match="expected the folder of an evaluation"):
        compare(write(tmp_path / "c"), tmp_path / "nowhere")


def test_nodes_that_are_gone_are_counted(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    EvaluationFolder(second).write_part(0, EvaluationFolder(second).rows()[:17])
    with pytest.raises(EvaluationError, match="lacks the nodes of 3 of its 20 prompts"):
        compare(first, second)


def test_scores_missing_on_either_side_leave_a_range_of_the_difference(tmp_path):
    """Of the first tester's successes the first two are not known, of the second's none: 0 to 2 of 20 in difference."""
    known = [prompt for prompt, ease in zip(PROMPTS, EASE, strict=True) if ease >= 0.5]
    found = compare(write(tmp_path / "a", missing=known[:2]), write(tmp_path / "b"), num_resamples=200)
    success = found["metrics"]["attack_success/any_turn"]
    share = len(known) / 20
    assert (success["first"], success["second"]) == pytest.approx((share - 0.1, share))
    assert success["missing"] == {
        "first": {"num_missing": 2, "lower": pytest.approx(share - 0.1), "upper": pytest.approx(share)}
    }
    difference = success["difference"]
    assert (difference["lower"]["value"], difference["upper"]["value"]) == pytest.approx((0.0, 0.1))
    assert difference["upper"]["low"] <= 0.1 <= difference["upper"]["high"]
    assert difference["num_missing"] == 2
    assert "missing" not in found["metrics"]["reward/mean"]


def test_scores_missing_on_both_sides_are_each_taken_at_their_worst(tmp_path):
    found = compare(
        write(tmp_path / "a", missing=PROMPTS[:3]), write(tmp_path / "b", missing=PROMPTS[:3]), num_resamples=50
    )
    difference = found["metrics"]["attack_success/any_turn"]["difference"]
    assert (difference["lower"]["value"], difference["upper"]["value"]) == pytest.approx((-0.15, 0.15))


def test_a_comparison_of_ranges_is_shown_as_ranges(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show_comparison(
        compare(
            write(tmp_path / "a", missing=PROMPTS[:3]), write(tmp_path / "b", missing=PROMPTS[:3]), num_resamples=50
        )
    )
    screen = capsys.readouterr().out
    (line,) = [line for line in screen.splitlines() if "attack_success/any_turn" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    known = sum(EASE[3:] >= 0.5)
    assert cells[1] == cells[2] == f"{known / 20:.3f} to {(known + 3) / 20:.3f}"
    assert cells[3] == "-0.150 to 0.150"
    assert "some scores are missing" in screen
