"""A report that follows runs: when it is written, what it reads again, when it ends."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from astra_accel.cli import main
from astra_accel.files.atomic import write_atomically
from astra_accel.files.run_status import telling_status
from astra_accel.report import collect, watch
from astra_accel.report.collect import RunReader
from astra_accel.report.page import render_page
from tests.helpers.written_runs import write_evaluation, write_run

RENEWED = re.compile(r'"renewed_every":([0-9.]+|null)')


@pytest.fixture
def run(tmp_path):
    """Three training steps, of which the last two are put aside."""
    folder = write_run(tmp_path / "run")
    for step in (2, 3):
        (folder / "rollouts" / f"step-{step:06d}.parquet").rename(tmp_path / str(step))
    return folder


@pytest.fixture
def moments(monkeypatch):
    """What happens while a watch sleeps, one after the other; then Ctrl-C. And for how long it wanted to."""
    happens, slept = [], []

    def sleep(seconds):
        slept.append(seconds)
        if not happens:
            raise KeyboardInterrupt
        happens.pop(0)()

    monkeypatch.setattr(watch, "sleep", sleep)
    return happens, slept


def step_ends(run, step):
    return lambda: (run.parent / str(step)).rename(run / "rollouts" / f"step-{step:06d}.parquet")


def renewed(page):
    return RENEWED.search(page.read_text(encoding="utf-8"))[1]


def test_it_is_written_as_the_run_goes_on_and_ends_with_it(run, moments, monkeypatch, capsys):
    happens, _ = moments
    written = []
    monkeypatch.setattr(watch, "write_report", lambda runs, page, every=None: written.append((runs[0], every)))
    goes_on = telling_status(run, here=True)
    goes_on.__enter__()
    happens += [lambda: None, step_ends(run, 2), lambda: None, step_ends(run, 3)]
    happens += [lambda: goes_on.__exit__(None, None, None)]

    assert main(["report", str(run), "--watch", "--every", "0.5"]) == 0

    assert [len(found.training) for found, _ in written] == [1, 2, 3, 3]
    assert [every for _, every in written] == [0.5, 0.5, 0.5, None]
    assert capsys.readouterr().out.splitlines()[-1] == f"{run}: ended"


def test_it_is_written_again_when_the_untrained_tester_was_evaluated(run, moments, monkeypatch):
    happens, _ = moments
    written = []
    write_evaluation(run / "evaluation")
    monkeypatch.setattr(watch, "write_report", lambda runs, page, every=None: written.append(every))
    with telling_status(run, here=True):
        happens += [lambda: write_evaluation(run / "evaluation_untrained"), lambda: None]
        assert main(["report", str(run), "--watch", "--every", "0.5"]) == 0
    assert written == [0.5, 0.5, None]


def test_ctrl_c_leaves_a_page_that_stays_as_it_is(run, moments, capsys):
    with telling_status(run, here=True):
        assert main(["report", str(run), "--watch"]) == 0

    assert renewed(run / "report.html") == "null"
    assert (run / "report.html").read_text().count("http-equiv") == 1
    assert "no longer watched" in capsys.readouterr().out


def test_the_page_of_a_run_that_goes_on_renews_itself(run):
    page = render_page([RunReader(run).read()], renewed_every=7.0)

    assert RENEWED.search(page)[1] == "7.0"
    assert '<noscript><meta http-equiv="refresh" content="7.0"></noscript>' in page
    assert 'id="pause"' in page


def test_a_run_whose_process_is_gone_is_over(run, moments, capsys):
    happens, _ = moments

    def dies():
        record = json.loads((run / "status.json").read_text())
        write_atomically(run / "status.json", json.dumps(record | {"state": "running", "started": 1.0}))

    with telling_status(run, here=True):
        happens.append(dies)
        assert main(["report", str(run), "--watch"]) == 0

    assert renewed(run / "report.html") == "null"
    assert f"{run}: gone" in capsys.readouterr().out


def test_a_run_that_has_not_begun_is_waited_for(tmp_path, moments, capsys):
    happens, _ = moments
    run, later = tmp_path / "run", write_run(tmp_path / "later")
    goes_on = telling_status(run, here=True)
    happens += [
        lambda: None,
        lambda: (run.mkdir(), shutil.copy(later / "config.yaml", run), goes_on.__enter__()),
        lambda: shutil.copy(later / "metrics.jsonl", run),
        lambda: goes_on.__exit__(None, None, None),
    ]

    assert main(["report", str(run), "--watch"]) == 0

    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("waiting: ")]
    assert [("there is no folder" in line, "no training step has ended yet" in line) for line in said] == [
        (True, False),
        (False, True),
    ]
    assert (run / "report.html").exists()


def test_a_run_that_ended_with_nothing_is_an_error(tmp_path, moments, capsys):
    with telling_status(tmp_path, here=True):
        pass

    assert main(["report", str(tmp_path), "--watch"]) == 2
    assert "has neither metrics.jsonl" in capsys.readouterr().err


def test_an_evaluation_alone_is_written_once(tmp_path, moments):
    _, slept = moments
    folder = write_evaluation(tmp_path / "alone")

    assert main(["report", str(folder), "--watch"]) == 0
    assert slept == []
    assert renewed(folder / "report.html") == "null"


def test_only_what_changed_is_read_again(run, monkeypatch):
    read = []
    monkeypatch.setattr(collect, "read_part", lambda file: read.append(file.name) or file)
    reader = RunReader(run)
    reader.read()
    step_ends(run, 2)()
    reader.read()
    assert read == ["step-000001.parquet", "step-000002.parquet"]

    step_ends(run, 3)()
    shutil.copy(run / "rollouts" / "step-000003.parquet", run / "rollouts" / "step-000001.parquet")
    (run / "rollouts" / "step-000002.parquet").unlink()
    found = reader.read()
    assert read[2:] == ["step-000001.parquet", "step-000003.parquet"]
    assert [file.name for file in found.training] == ["step-000001.parquet", "step-000003.parquet"]


def test_a_watch_rests_nine_times_as_long_as_it_worked(run, moments, monkeypatch):
    _, slept = moments
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(watch, "process_time", lambda: next(clock))

    with telling_status(run, here=True):
        main(["report", str(run), "--watch", "--every", "2"])

    assert slept == [36.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--every", "3"], "--every is given without --watch"), (["--watch", "--every", "0"], "--every is 0; expected")],
)
def test_intervals_that_mean_nothing(run, capsys, arguments, message):
    assert main(["report", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err
