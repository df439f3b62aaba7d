"""Which conversations a person is shown (``training/callbacks/console.py``)."""

import pytest

from astra_accel import Graph, Node, TrainingConfiguration
from astra_accel.training.callbacks.console import best_branch, printable, sample_rows, samples_are_due, shown


def conversation():
    best = Node("pqr", "best probe", "best answer", 0.9)
    worse = Node("pqr", "dull probe", "dull answer", None)
    first = Node("p", "first probe", "first answer", 0.5, [worse, best])
    return Graph("the prompt", [Node("p", "other probe", "other answer", 0.2), first])


@pytest.mark.parametrize(("every", "expected"), [(None, []), (1, [1, 2, 3, 4, 5, 6]), (3, [1, 3, 6]), (10, [1])])
def test_the_first_training_step_and_every_so_many_show_some(every, expected):
    config = TrainingConfiguration(sample_steps=every)

    assert [step for step in range(1, 7) if samples_are_due(config, step)] == expected


def test_the_best_branch_takes_the_best_probe_of_each_turn():
    assert [node.probe for node in best_branch(conversation())] == ["first probe", "best probe"]
    assert list(best_branch(Graph("p", []))) == []


def test_a_turn_is_a_row():
    rows = sample_rows([conversation(), conversation(), conversation()], 2)

    assert [(row["episode"], row["turn"]) for row in rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert rows[1] == {
        "episode": 0,
        "turn": 2,
        "prompt": "the prompt",
        "probe": "best probe",
        "response": "best answer",
        "reward": 0.9,
    }


def test_a_very_long_text_is_cut_and_says_how_long_it_is():
    assert shown("x" * 10_000) == "x" * 10_000
    assert shown("\ud800" + "x" * 1_000_000) == r"\ud800" + "x" * 9_999 + "… (1000001 characters)"
    assert shown(12) == "12"


class TestPrintable:
    def test_text_stays_as_it_is(self):
        text = "Grüße, 你好 😀 ± [bold]not markup[/bold] \\x1b\nnext line  "

        assert printable(text) == text

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
            ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
            ("\x9b2J", r"\x9b2J"),
            ("a\rb\x08c\x00d\te", r"a\rb\x08c\x00d\te"),
            ("a\u202eb\u2066c\u200fd", r"a\u202eb\u2066c\u200fd"),
            ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
            ("\U000e0041", r"\U000e0041"),
            ("half \ud83d", r"half \ud83d"),
        ],
    )
    def test_what_could_steer_a_terminal_is_escaped(self, text, expected):
        assert printable(text) == expected
        printable(text).encode("utf-8")
