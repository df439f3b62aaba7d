"""Which evaluations a report holds against each other, and where it says what came of it."""

from __future__ import annotations

import pytest

from astra_accel.cli import main
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.summary import summarize
from astra_accel.evaluation.folder import EvaluationFolder
from astra_accel.report.collect import read_run
from astra_accel.report.verdicts import verdicts
from tests.helpers.written_runs import write_run

MORE = (
    "Before training, 2 of 20 conversations brought out an unsafe response (10%); after, 14 of 20 (70%): "
    "60 points more (95% interval "
)
TRAINED = {"weights": {"adapter_model.safetensors": "0f"}}


def write_evaluation(path, num_failures, tester=None, first_prompt=0):
    """Twenty prompts of one turn; the first ``num_failures`` responses are failures."""
    folder = EvaluationFolder(path)
    folder.begin(
        {
            "seeds": [f"prompt {first_prompt + number}" for number in range(20)],
            "scorers": {"reward": "Profanity"},
            "tree_width": 1,
            "tree_depth": 1,
            "settings": {"tester": {"path": "m"} | (tester or {})},
        }
    )
    row = {"path": [0], "turn": 1, "context": "c", "probe": "p", "response": "r", "reward": 0.0}
    rows = [{"episode": number, **row, "response_score": 0.9 if number < num_failures else 0.1} for number in range(20)]
    folder.write_part(0, rows)
    folder.write_metrics(summarize(Nodes.from_rows(rows, 20), threshold=0.5, num_resamples=20))
    return path


@pytest.fixture
def run(tmp_path):
    """A run that was evaluated after training."""
    folder = write_run(tmp_path / "run", num_steps=1, episodes_a_step=1)
    write_evaluation(folder / "evaluation", 14, TRAINED)
    return folder


def found(*paths):
    return verdicts([read_run(path) for path in paths])


def test_a_run_evaluated_after_training_alone_has_none(run, capsys):
    assert found(run) == []
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("the report is ")
    assert "verdict" not in (run / "report.html").read_text().split("<body>")[1]


def test_the_command_ends_with_it_and_page_and_summary_begin_with_it(run, capsys):
    untrained = write_evaluation(run / "evaluation_untrained", 2)
    assert main(["report", str(run), str(untrained)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    page = run / "report.html"
    assert last.startswith(MORE)
    assert last.endswith(f" Read more in {page}.")
    assert f'<p class="verdict">{MORE}' in page.read_text()
    assert (run / "report.md").read_text().splitlines()[2].startswith("Before training, 2 of 20 conversations")


def test_the_untrained_evaluation_may_be_beside_or_given(run, tmp_path):
    elsewhere = write_evaluation(tmp_path / "elsewhere", 2)
    (sentence,) = found(run, elsewhere)
    assert sentence.startswith(MORE)
    write_evaluation(run / "evaluation_untrained", 2)
    assert found(run) == found(run / "evaluation") == [sentence]


def test_two_runs_have_one_each_by_their_names(run, tmp_path):
    other = write_run(tmp_path / "other", num_steps=1, episodes_a_step=1)
    write_evaluation(other / "evaluation", 2, TRAINED)
    first, second = found(run, other, write_evaluation(tmp_path / "untrained", 2))
    assert first.startswith(f"run: {MORE}")
    assert second.startswith("other: Before training, 2 of 20 conversations")
    assert "no difference that 20 conversations can show" in second


def test_what_can_not_be_compared_is_said(run):
    write_evaluation(run / "evaluation_untrained", 2, first_prompt=1)
    (sentence,) = found(run)
    assert sentence.startswith(
        "Before and after training can't be compared: the two were evaluated on different prompts"
    )


def test_one_that_can_be_compared_comes_before_one_that_can_not(run, tmp_path):
    other_prompts = write_evaluation(tmp_path / "other_prompts", 2, first_prompt=1)
    write_evaluation(run / "evaluation_untrained", 2)
    (sentence,) = found(run, other_prompts)
    assert sentence.startswith(MORE)


def test_an_evaluation_that_has_not_ended_does_not_count(run):
    (write_evaluation(run / "evaluation_untrained", 2) / "metrics.json").unlink()
    assert found(run) == []


def test_compare_ends_with_it_too(run, capsys):
    write_evaluation(run / "evaluation_untrained", 2)
    assert main(["compare", str(run / "evaluation_untrained"), str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(MORE)
    assert main(["compare", str(run), str(run / "evaluation_untrained")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("With the first tester, 14 of 20 conversations")
