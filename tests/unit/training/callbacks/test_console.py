import pytest

from astra_accel import Graph, Node
from astra_accel.training.callbacks.console import Display


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def conversation():
    best = Node("pqr", "best probe", "best answer", 0.9)
    worse = Node("pqr", "dull probe", "dull answer", 0.1)
    first = Node("p", "first probe", "first answer", 0.5, [worse, best])
    return Graph("the prompt", [Node("p", "other probe", "other answer", 0.2), first])


class TestDisplay:
    @pytest.fixture
    def use(self):
        def use(enabled):
            display = Display(enabled, num_steps=10)
            with display.running(3):
                display.say("a message")
                display.step(4, {"loss": 0.12345, "reward/mean": None, "seconds/rollout": 1.25, "seconds/update": 0.5})
                display.conversations([conversation()], 1)

        return use

    def test_nothing_is_shown_when_disabled(self, use, capfd):
        use(enabled=False)

        assert capfd.readouterr() == ("", "")

    def test_the_main_process_sees_it_all(self, use, capfd):
        use(enabled=True)

        shown = capfd.readouterr().out
        assert "a message" in shown
        assert "step 4/10  loss 0.1235  1.8 s" in shown
        assert "the prompt" in shown

    def test_messages_are_no_markup(self, capfd):
        Display(True, 1).say("[red]runs/[a]\\b")

        assert capfd.readouterr().out == "[red]runs/[a]\\b\n"

    def test_a_conversation_follows_the_best_probe_of_each_turn(self, capfd):
        Display(True, 1).conversations([conversation()], 5)

        shown = capfd.readouterr().out
        lines = [line.strip("│ ") for line in shown.splitlines()][1:-1]
        assert lines == [
            "the prompt",
            "[tester, reward 0.500] first probe",
            "[target] first answer",
            "[tester, reward 0.900] best probe",
            "[target] best answer",
        ]

    def test_a_probe_without_a_reward_is_shown_where_there_is_no_other(self, capfd):
        ahead = Graph("p", [Node("p", "unknown", "r", None), Node("p", "known", "r", -5.0)])

        Display(True, 1).conversations([ahead, Graph("p", [Node("p", "unknown", "r", None)])], 2)

        shown = capfd.readouterr().out
        assert "[tester, reward -5.000] known" in shown
        assert shown.count("[tester, reward missing] unknown") == 1

    def test_only_as_many_conversations_as_asked_for(self, capfd):
        Display(True, 1).conversations([conversation()] * 3, 2)

        assert capfd.readouterr().out.count("the prompt") == 2

    def test_what_models_say_cannot_steer_the_terminal(self, capfd):
        node = Node("p", "\x1b[2J[red]", "\u202e\ud800", 1.0)

        Display(True, 1).conversations([Graph("\x07", [node])], 1)

        shown = capfd.readouterr().out
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)
        for escaped in (r"\x07", r"\x1b[2J[red]", r"\u202e\ud800"):
            assert escaped in shown
