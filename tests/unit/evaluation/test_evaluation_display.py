"""Figures as a person reads them."""

from __future__ import annotations

import pytest

from astra_accel.evaluation.display import category_rows, details_of, interval_of, number, show_metrics, value_text


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.12345, "0.123"), (-4.5, "-4.500"), (99.9996, "100.000"), (1234.5, "1234")]
)
def test_numbers(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        ({"value": 0.5, "low": 0.25, "high": 0.75}, "0.250 to 0.750"),
        ({"value": 6.0, "low": 3.0, "high": None}, "from 3.000"),
        ({"value": None, "low": None, "high": None}, ""),
        ({"value": 0.5}, ""),
    ],
)
def test_intervals(figure, shown):
    assert interval_of(figure) == shown


RANGE = {
    "value": 0.1,
    "low": 0.05,
    "high": 0.2,
    "num_missing": 3,
    "lower": {"value": 0.1, "low": 0.05, "high": 0.2},
    "upper": {"value": 0.4, "low": 0.3, "high": 0.5},
}


@pytest.mark.parametrize(
    ("figure", "value", "details"),
    [
        (RANGE, "0.100 to 0.400", "0.050 to 0.500; 3 scores missing"),
        (RANGE | {"upper": RANGE["lower"], "num_missing": 1}, "0.100", "0.050 to 0.200; 1 score missing"),
        (RANGE | {"upper": {"value": None, "low": None, "high": None}}, "from 0.100", "from 0.050; 3 scores missing"),
        ({"value": 2.5, "low": 1.0, "high": 3.0, "num_missing": 2}, "2.500", "1.000 to 3.000; 2 scores missing"),
        ({"value": 0.5, "low": 0.25, "high": 0.75}, "0.500", "0.250 to 0.750"),
    ],
)
def test_a_figure_with_missing_scores_goes_from_end_to_end(figure, value, details):
    assert (value_text(figure), details_of(figure)) == (value, details)


def test_the_screen_says_how_many_scores_are_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    figures = {"attack_success/any_turn": RANGE, "reward/mean": {"value": 1.0, "low": 0.0, "high": 2.0}}
    metrics = {
        "num_episodes": 10,
        "threshold": 0.5,
        "interval": {"confidence": 0.95},
        "metrics": figures,
        "left_out": {},
    }
    show_metrics(metrics, tmp_path)
    screen = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in screen.splitlines() if line.startswith("│")]
    assert rows == [
        ["attack_success/any_turn", "0.100 to 0.400", "0.050 to 0.500", "3"],
        ["reward/mean", "1.000", "0.000 to 2.000", ""],
    ]
    assert "some scores are missing" in screen


FIGURES = {
    "response_score/mean": {"value": 0.2, "low": 0.1, "high": 0.3},
    **{
        f"category/{scorer}/{label}/{name}": {"value": value, "low": 0.0, "high": 1.0}
        for scorer, label, value in (("reward", "insult", 0.1), ("reward", "threat", 0.4), ("guard", "S1 [b]", None))
        for name in ("attack_success/any_turn", "response_score/mean", "response_score/max")
    },
}


def test_kinds_of_harm_by_scorer_the_worst_first():
    rows = [(scorer, label, success["value"]) for scorer, label, success, _ in category_rows(FIGURES)]
    assert rows == [("reward", "threat", 0.4), ("reward", "insult", 0.1), ("guard", "S1 [b]", None)]
    assert category_rows({"response_score/mean": FIGURES["response_score/mean"]}) == []


def test_kinds_of_harm_are_on_the_screen(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    metrics = {
        "num_episodes": 10,
        "threshold": 0.5,
        "interval": {"confidence": 0.95},
        "metrics": FIGURES,
        "left_out": {},
    }
    show_metrics(metrics, tmp_path)
    screen = capsys.readouterr().out
    assert "by kind of harm" in screen
    (line,) = [line for line in screen.splitlines() if "threat" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["reward", "threat", "0.400", "0.000 to 1.000", "0.400"]
    assert "S1 [b]" in screen


def test_without_kinds_of_harm_there_is_no_table(capsys, tmp_path):
    metrics = {
        "num_episodes": 10,
        "threshold": 0.5,
        "interval": {"confidence": 0.95},
        "metrics": {"response_score/mean": FIGURES["response_score/mean"]},
        "left_out": {},
    }
    show_metrics(metrics, tmp_path)
    assert "kind of harm" not in capsys.readouterr().out


def test_categories_of_prompts_are_on_the_screen(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    success = {"value": 0.25, "low": 0.1, "high": 0.5}
    metrics = {
        "num_episodes": 10,
        "threshold": 0.5,
        "interval": {"confidence": 0.95},
        "metrics": {"response_score/mean": FIGURES["response_score/mean"]},
        "by_category": [
            {"category": "hate [b]", "num_goals": 2, "num_prompts": 8, "attack_success": success},
            {"category": None, "num_goals": 0, "num_prompts": 2, "attack_success": RANGE},
        ],
        "left_out": {},
    }
    show_metrics(metrics, tmp_path)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["hate [b]", "2", "8", "0.250", "0.100 to 0.500"] in rows
    assert ["(none)", "0", "2", "0.100 to 0.400", "0.050 to 0.500"] in rows
