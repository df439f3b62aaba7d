"""From the folders of runs to a page and a summary."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest

from astra_accel.cli import main
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.summary import summarize
from astra_accel.evaluation.folder import EvaluationError, EvaluationFolder
from astra_accel.files.run_status import telling_status
from astra_accel.files.tables import write_table
from astra_accel.files.text import visible
from astra_accel.report.collect import read_run
from astra_accel.report.conversations import choose, conversations
from astra_accel.report.goals import category_rows, goal_rows
from astra_accel.report.markdown import render_markdown
from astra_accel.report.page import about, harm_rows, headline_rows, render_page
from astra_accel.report.parts import SCORE
from astra_accel.report.plots import diversity_and_success, phase_seconds, plots_of, rewards, success_ranges, successes
from tests.helpers.written_runs import HOSTILE, write_evaluation, write_run


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text in each kind."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.texts = [], [], {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts[self.open[-1] if self.open else ""] = self.texts.get(self.open[-1] if self.open else "", "") + data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three training steps, and an evaluation of 12 prompts whose first responses are hostile."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "<i>run")
    write_evaluation(folder / "evaluation", 12, HOSTILE)
    return read_run(folder)


# --- What runs wrote ----------------------------------------------------------------------------------------


def test_a_run_is_read_and_a_line_that_was_cut_off_is_counted(run):
    assert run.name == "<i>run"
    assert [update["update"] for update in run.updates] == [1, 2, 3, 4, 5, 6]
    assert run.num_skipped == 1
    assert run.environment == ["python 3", "torch 2"]
    assert run.config["algorithm"] == {"name": "dpo"}
    assert [len(part.scores) for part in run.training] == [4 * 14] * 3
    assert [len(part.scores) for part in run.held_out] == [12 * 14]
    assert ("unreadable lines of metrics.jsonl", "1") in about(run)
    assert ("training steps", "3") in about(run)


def test_an_evaluation_alone_is_something_to_report(tmp_path):
    found = read_run(write_evaluation(tmp_path / "alone"))
    assert (found.held_out[0].num_episodes, found.training, found.updates, found.status) == (12, [], [], None)


def test_a_folder_with_nothing_to_report_is_named(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has neither metrics\.jsonl nor"):
        read_run(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "has neither metrics.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_not_there_or_has_no_step_yet_is_told_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no training step has ended yet"):
        read_run(tmp_path)


def test_the_state_of_a_run_is_told(tmp_path):
    folder = write_run(tmp_path / "run")

    def fails():
        assert ("state", "running") in about(read_run(folder))
        raise RuntimeError("the loss is not finite")

    with pytest.raises(RuntimeError), telling_status(folder, here=True):
        fails()
    assert ("state", "failed: RuntimeError: the loss is not finite") in about(read_run(folder))


def test_figures_that_are_no_json_are_named(tmp_path):
    folder = write_evaluation(tmp_path / "evaluation")
    (folder / "metrics.json").write_text('{"metr')
    with pytest.raises(EvaluationError, match=r"metrics\.json is no JSON"):
        read_run(tmp_path)


# --- Series of plots ----------------------------------------------------------------------------------------


def test_what_belongs_to_a_training_step_counts_once(run):
    """Each step has two updates, on whose lines it stands twice."""
    assert rewards(run) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert phase_seconds(run) == {"rollout": 6.0, "update": 3.0}


def test_success_and_diversity_of_a_step(run):
    step = pq.read_table(run.path / "rollouts" / "step-000002.parquet").to_pylist()
    share = sum(row["response_score"] >= 0.5 for row in step) / len(step)
    assert successes(run)[1] == (2.0, pytest.approx(share))
    pairs = [pair for row in step for pair in zip(row["probe"].split(), row["probe"].split()[1:], strict=False)]
    assert diversity_and_success(run)[1] == pytest.approx((len(set(pairs)) / len(pairs), share))


# --- Conversations ------------------------------------------------------------------------------------------


def test_half_the_worst_and_half_spread_over_the_others():
    scores = [0.1, 0.9, None, 0.5, 0.3, 0.8, 0.2, 0.4]
    assert choose(scores, 8) == [1, 5, 3, 7, 4, 6, 0, 2]
    assert choose(scores, 4) == [1, 5, 3, 6]
    assert choose(scores, 1) == [1]


def test_episodes_keep_their_trees(run):
    shown, total = conversations([run])
    assert len(shown) == total == 12 + 3 * 4
    for episode in shown:
        parents = [node[0] for node in episode["nodes"]]
        assert parents == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert episode["worst"] == max(node[3] for node in episode["nodes"])
    assert {episode["source"] for episode in shown} == {"held-out", "step 1", "step 2", "step 3"}
    assert sorted(episode["episode"] for episode in shown if episode["source"] == "step 2") == [0, 1, 2, 3]


def test_goals_and_what_came_of_questions_are_shown(tmp_path):
    folder = write_evaluation(tmp_path / "alone", 1)
    rows = EvaluationFolder(folder).rows()
    for row, outcome in zip(rows, ["filtered", "target_error"], strict=False):
        row["outcome"] = outcome
    rows = [{"outcome": "answered", **row, "goal": "Forge <b>a ticket"} for row in rows]
    write_table(EvaluationFolder(folder).part(0), rows)
    run = read_run(folder)
    ((episode,), _) = conversations([run])
    assert episode["goal"] == "Forge <b>a ticket"
    found = [node[4].get("outcome") for node in episode["nodes"]]
    assert found[:2] == ["filtered", "target_error"]
    assert set(found[2:]) == {None}
    assert "goal: Forge <b>a ticket" in render_markdown([run])


def test_a_page_holds_only_so_much(run, monkeypatch):
    monkeypatch.setattr("astra_accel.report.conversations.MAX_BYTES", 20_000)
    monkeypatch.setattr("astra_accel.report.conversations.MAX_TEXT", 50)
    shown, total = conversations([run])
    assert 0 < len(shown) < total
    assert sum(len(json.dumps(episode)) for episode in shown) < 22_000
    assert "more characters)" in shown[-1]["nodes"][0][1]
    page = render_page([run])
    assert f"{len(shown)} of {total} episodes: those with the worst" in page


# --- The page -----------------------------------------------------------------------------------------------


def test_the_page_has_no_element_of_a_text_and_no_address(run):
    page = Elements(render_page([run]))
    scripts = [attributes for tag, attributes in page.found if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    tags = {tag for tag, _ in page.found}
    assert not tags & {"img", "a", "i", "b", "link", "iframe", "object", "base"}
    for _, attributes in page.found:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "style", "action")}
    assert page.texts["title"].startswith("Red-team report: <i>run")
    assert "<b>tester</b>" in page.texts["dd"]
    assert "http" not in page.texts["style"]


def test_the_policy_lets_in_the_pages_own_script_and_style_alone(run):
    page = Elements(render_page([run]))
    policy = next(attributes["content"] for tag, attributes in page.found if "http-equiv" in attributes)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.keys() == {"default-src", "script-src", "style-src"}
    assert rules["default-src"] == "'none'"
    assert all(rules[name].startswith("'sha256-") for name in ("script-src", "style-src"))


def test_the_name_of_a_folder_may_be_anything_that_a_disk_holds(tmp_path):
    folder = write_run(tmp_path / "run").rename(tmp_path / os.fsdecode(b"<b>\xff \xe2\x80\xae"))
    page = render_page([read_run(folder)])
    assert "&lt;b&gt;[U+DCFF] [U+202E]" in page
    page.encode("utf-8")


def test_texts_come_whole_in_a_block_of_data(run):
    text = render_page([run]).split('id="data">')[1].split("</script>")[0]
    said = [node[2] for episode in json.loads(text)["episodes"] for node in episode["nodes"]]
    for hostile in HOSTILE:
        assert visible(hostile.encode("utf-8", "replace").decode("utf-8")) in said


def test_headlines_have_a_cell_for_each_run(run, tmp_path):
    other = read_run(write_run(tmp_path / "other"))
    for name, (mine, its) in headline_rows([run, other]):
        figure = run.figures["metrics"][name]
        assert mine[0].startswith(f"{figure['value']:.3f}"[:4])
        assert its == ("", "")
    page = render_page([run, other])
    assert page.count("<figure") == 7
    assert render_page([other]).count("None of these runs has been evaluated") == 1


def test_kinds_of_harm_have_a_table_where_a_scorer_tells_them_apart(run, tmp_path):
    assert harm_rows([run]) == []
    assert "by kind of harm" not in render_page([run]) + render_markdown([run])

    rows = [
        {"episode": episode, "turn": 1, "probe": "p", "response": "r", "context": "c", "path": [0], "reward": 0.0}
        | {"response_score": 0.1, "category/reward/S1 <b>|": 0.9 if episode < 3 else 0.1, "category/reward/S2": 0.1}
        for episode in range(12)
    ]
    folder = EvaluationFolder(tmp_path / "kinds")
    folder.begin({"seeds": list(range(12)), "scorers": {}, "settings": {}})
    folder.write_part(0, rows)
    figures = summarize(Nodes.from_rows(rows, 12), threshold=0.5, num_resamples=50)
    folder.write_metrics(figures)
    kinds = read_run(folder.path)

    success = figures["metrics"]["category/reward/S1 <b>|/attack_success/any_turn"]
    ends = f"{success['low']:.3f} to {success['high']:.3f}"
    assert harm_rows([run, kinds])[0] == ("reward: S1 <b>|", [("", ""), ("0.250", ends)])
    page = render_page([run, kinds])
    assert f"reward: S1 &lt;b&gt;|</th><td></td><td>0.250 <small>{ends}</small></td>" in page
    text = render_markdown([run, kinds])
    assert rf"| reward\: S1 \<b\>\| |  | 0.250 ({ends}) |" in text


def test_goals_and_categories_have_tables_where_prompts_have_them(run, tmp_path):
    assert category_rows([run]) == goal_rows([run]) == []
    assert "By category" not in render_page([run]) + render_markdown([run])

    prompts = [("<b>|", "S1 <i>", 0.9), ("<b>|", "S1 <i>", 0.1), ("easy " * 100, "S2", 0.2), ("unknown", "S2", None)]
    rows = [
        {"episode": episode, "turn": 1, "probe": "p", "response": "r", "context": "c", "path": [0], "reward": 0.0}
        | {"response_score": score, "goal": goal, "category": category}
        for episode, (goal, category, score) in enumerate(prompts)
    ]
    folder = EvaluationFolder(tmp_path / "goals")
    folder.begin({"seeds": list(range(4)), "scorers": {}, "settings": {}})
    folder.write_part(0, rows)
    figures = summarize(Nodes.from_rows(rows, 4, 1), threshold=0.5, num_resamples=50)
    folder.write_metrics(figures)
    goals = read_run(folder.path)

    assert [name for name, _ in category_rows([run, goals])] == ["S1 <i>", "S2"]
    empty, (value, details) = category_rows([run, goals])[1][1]
    assert (empty, value) == (("", ""), "0.000 to 0.500")
    assert details.endswith("1 score missing; 2 prompts")
    assert [(name[:9], cells[1]) for name, cells in goal_rows([run, goals])] == [
        ("<b>|", ("1 of 2", "2 questions; best score 0.900")),
        ("easy easy", ("0 of 1", "1 question; best score 0.200")),
        ("unknown", ("0 to 1 of 1", "1 question; best score -")),
    ]
    page = render_page([run, goals])
    assert "&lt;b&gt;|</th><td></td><td>1 of 2 <small>2 questions; best score 0.900</small></td>" in page
    assert "<summary>3 goals, the hardest last</summary>" in page
    assert "<i>" not in page
    text = render_markdown([run, goals])
    assert r"| \<b\>\| |  | 1 of 2 (2 questions; best score 0.900) |" in text
    assert r"| S1 \<i\> |" in text


# --- Markdown -----------------------------------------------------------------------------------------------


def test_the_summary_has_what_was_run_the_figures_and_the_worst(run):
    text = render_markdown([run])
    lines = text.split("\n")
    assert lines[0] == "# Red-team report"
    assert r"## \<i\>run" in lines
    success = run.figures["metrics"]["attack_success/any_turn"]
    ends = f"{success['low']:.3f} to {success['high']:.3f}"
    assert rf"| attack\_success/any\_turn | {success['value']:.3f} ({ends}) |" in lines
    assert lines.count("</details>") == 1
    assert sum(line.startswith("    target (0.9): ") for line in lines) == 3
    hostile = [line for line in lines if "<" in line and not line.startswith(("    ", "<details>", "</details>"))]
    assert [line for line in hostile if "\\<" not in line] == []


def test_the_command_writes_both(run, tmp_path, capsys):
    output = tmp_path / "page.html"
    assert main(["report", str(run.path), "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == render_page([run])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == render_markdown([run])
    assert "1 lines of metrics.jsonl could not be read" in capsys.readouterr().out


def test_missing_scores_are_ranges_on_the_page_and_in_the_pictures(tmp_path):
    """Of two training responses one is a success and one has no score; of four held-out episodes one and one."""
    row = {"path": [0], "turn": 1, "context": "c", "probe": "p", "response": "r", "reward": 1.0}
    folder = write_run(tmp_path / "run", num_steps=1, episodes_a_step=1)
    scored = [{"step": 1, **row, "episode": episode, SCORE: score} for episode, score in enumerate((0.9, None))]
    write_table(folder / "rollouts" / "step-000001.parquet", scored)
    held_out = [{**row, "episode": episode, SCORE: score} for episode, score in enumerate((0.9, None, 0.1, 0.1))]
    evaluation = EvaluationFolder(folder / "evaluation")
    evaluation.write_part(0, held_out)
    evaluation.write_metrics(summarize(Nodes.from_rows(held_out, 4), threshold=0.5, num_resamples=20))

    run = read_run(folder)
    assert (successes(run), success_ranges(run)) == ([(1.0, 0.5)], [(0.5, 1.0)])
    value, details = dict(headline_rows([run]))["attack_success/any_turn"][0]
    assert value == "0.250 to 0.500"
    assert details.endswith("; 1 score missing")
    notes = {plot.title: plot.note for plot in plots_of([run])}
    for title in ("Success over training", "Success by turn", "Success at any turn over thresholds"):
        assert "where every response without a score is a success" in notes[title]
    assert "1 score missing" in render_page([run])
    assert "1 score missing" in render_markdown([run])
