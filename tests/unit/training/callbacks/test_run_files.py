import gc
import json
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from astra_accel import Graph, Node
from astra_accel.config import RunConfiguration, TrainingConfiguration
from astra_accel.files import run_folder
from astra_accel.files.run_folder import OutputFolderError, check_output_dir, new_output_dir
from astra_accel.training.callbacks.run_files import RunFolder
from tests.helpers.plain import build_plain


def check(folder, resuming=False, restarting=False, **settings):
    check_output_dir(TrainingConfiguration(output_dir=folder, **settings), resuming, restarting)


@pytest.fixture
def run(tmp_path):
    """A folder that holds a run with two checkpoints."""
    folder = tmp_path / "run"
    for name in ("step-000010", "step-000100"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


class TestCheckOutputDir:
    def test_a_folder_is_free_that_is_absent_empty_or_holds_other_things(self, tmp_path):
        check(None)
        check(tmp_path / "absent")
        check(tmp_path)
        (tmp_path / "notes.txt").touch()
        check(tmp_path)

    @pytest.mark.parametrize("part", ["config.yaml", "metrics.jsonl", "rollouts", "checkpoints", "tester"])
    def test_any_part_of_a_run_is_one(self, tmp_path, part):
        (tmp_path / part).mkdir()

        with pytest.raises(OutputFolderError, match=rf"already holds a run \({part}\)"):
            check(tmp_path)

    def test_the_message_says_how_to_resume_and_how_to_overwrite(self, run):
        with pytest.raises(OutputFolderError) as caught:
            check(run)

        message = str(caught.value)
        assert f"training.output_dir {run} already holds a run (metrics.jsonl, checkpoints)" in message
        assert f"--resume {run / 'checkpoints' / 'step-000100'}" in message
        overwrite = re.search(r"To delete it: (.*?)\. Or", message)[1].split()
        assert RunConfiguration.load(overrides=overwrite).training.overwrite_output_dir

    def test_a_run_without_checkpoint_can_only_be_overwritten(self, tmp_path):
        (tmp_path / "metrics.jsonl").touch()

        with pytest.raises(OutputFolderError, match="it has no checkpoint to resume from"):
            check(tmp_path)

    def test_resuming_and_overwriting_go_on(self, run):
        check(run, resuming=True)
        check(run, overwrite_output_dir=True)

    def test_restarting_goes_on_where_a_run_was_stopped_but_not_where_one_ended(self, run):
        check(run, restarting=True)
        (run / "tester").mkdir()

        with pytest.raises(OutputFolderError, match=r"already holds a run \(tester\)"):
            check(run, restarting=True)
        check(run, restarting=True, resuming=True)
        check(run, restarting=True, overwrite_output_dir=True)

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "file").touch()

        with pytest.raises(NotADirectoryError, match=r"training\.output_dir is .*file, which is a file"):
            check(tmp_path / "file", overwrite_output_dir=True)

    def test_a_run_without_a_folder_gets_one_by_date_and_time(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        assert re.fullmatch(r"runs/\d{8}-\d{6}", new_output_dir().as_posix())

    def test_of_runs_that_begin_in_one_second_each_gets_its_own(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with ThreadPoolExecutor(8) as threads:
            folders = list(threads.map(lambda _: new_output_dir(), range(32)))

        assert len(set(folders)) == 32
        assert all(folder.is_dir() for folder in folders)

    def test_one_that_nothing_was_written_to_is_removed_with_its_trainer(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = RunFolder(new_output_dir())
        folder.remove_if_unused()
        assert folder.path.is_dir()

        del folder
        gc.collect()

        assert list(tmp_path.iterdir()) == []


class TestBegin:
    def test_it_writes_the_configuration_and_the_versions(self, tmp_path):
        config = RunConfiguration(training={"lr": 1e-4, "output_dir": tmp_path}, lora=None)

        RunFolder(tmp_path / "a" / "b").begin(config.to_yaml(), overwrite=False)

        path = tmp_path / "a" / "b" / "config.yaml"
        assert RunConfiguration.load(path) == config
        comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
        assert comments[0].startswith(f"# python {sys.version.split()[0]}")
        for package in ("astra-accel", "torch", "accelerate", "transformers", "peft", "datasets", "numpy"):
            assert any(re.fullmatch(rf"# {package} \d+\.\d+.*", line) for line in comments), package

    def test_a_package_that_is_not_there_and_a_folder_without_git_do_no_harm(self, tmp_path, monkeypatch):
        monkeypatch.setattr(run_folder, "PACKAGES", ("nonesuch-package",))
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        monkeypatch.chdir(tmp_path)

        RunFolder(tmp_path).begin("", overwrite=False)

        lines = (tmp_path / "config.yaml").read_text().splitlines()
        assert lines[1:] == ["# nonesuch-package (not installed as a package)"]

    def test_overwriting_deletes_the_run_and_nothing_else(self, run):
        (run / "rollouts").mkdir()
        (run / "tester").mkdir()
        (run / "evaluation").mkdir()
        (run / "evaluation_untrained").mkdir()  # of the run that was there, whose prompts or turns may have been others
        (run / "notes.txt").touch()

        RunFolder(run).begin("a: 1\n", overwrite=True)

        assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "notes.txt"]

    def test_overwriting_keeps_links_to_other_disks_and_what_is_not_a_run_s_there(self, run, tmp_path):
        scratch = tmp_path / "scratch"
        (run / "checkpoints").rename(scratch)
        (scratch / "of another project").touch()
        (run / "checkpoints").symlink_to(scratch)
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "adapter_config.json").touch()
        (run / "tester").symlink_to("../weights")

        RunFolder(run).begin("a: 1\n", overwrite=True)

        assert (run / "checkpoints").is_symlink()
        assert [path.name for path in scratch.iterdir()] == ["of another project"]
        assert (run / "tester").is_symlink()
        assert list((tmp_path / "weights").iterdir()) == []

    def test_without_overwriting_the_run_stays(self, run):
        RunFolder(run).begin("a: 1\n", overwrite=False)

        assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl"]


class TestRewind:
    def test_what_comes_after_the_step_goes(self, tmp_path):
        folder = RunFolder(tmp_path)
        for step, update in [(1, 1), (1, 2), (2, 3), (3, 3), (4, 4)]:
            folder.write_metrics({"step": step, "update": update})
        for step in (1, 2, 3, 1000000):
            folder.write_rollouts(step, [])

        folder.rewind(2)

        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        # Step 3 made no update, and so has the number of step 2's: the step counts.
        assert [(line["step"], line["update"]) for line in lines] == [(1, 1), (1, 2), (2, 3)]
        files = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
        assert files == ["step-000001.parquet", "step-000002.parquet"]

    def test_a_half_written_last_line_goes(self, tmp_path):
        folder = RunFolder(tmp_path)
        folder.write_metrics({"step": 1, "update": 1})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 1, "upda')

        folder.rewind(5)
        folder.write_metrics({"step": 2, "update": 2})

        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]

    def test_a_last_line_that_lacks_only_its_end_goes_too(self, tmp_path):
        # Appended to, it would make one line of two.
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "update": 1}')

        RunFolder(tmp_path).rewind(1)

        assert (tmp_path / "metrics.jsonl").read_text() == ""

    def test_a_new_run_has_nothing_to_rewind(self, tmp_path):
        RunFolder(tmp_path).rewind(0)

        assert list(tmp_path.iterdir()) == []


class TestMetrics:
    def test_each_record_is_a_line_and_what_is_not_finite_is_null(self, tmp_path):
        folder = RunFolder(tmp_path)
        folder.write_metrics({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": 1e-05, "note": None})
        folder.write_metrics({"step": 2, "loss": 0.5})

        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
            {"step": 1, "loss": None, "grad_norm": None, "lr": 1e-05, "note": None},
            {"step": 2, "loss": 0.5},
        ]


class TestRollouts:
    def test_every_node_is_a_row(self, tmp_path):
        leaf = Node("pq", "r", "s", 2.0, info={"reward": 2.0, "naturalness": -1.5, "probe_tokens": 1})
        root = Node("p", "q", "", 1, [leaf, leaf], {"reward": 1.0, "probe_tokens": 3})
        graphs = [Graph("p", [root]), Graph("z", [Node("z", "zz", "zzz", -1.0, info={"note": "n"})])]

        path = RunFolder(tmp_path).write_rollouts(7, graphs)

        assert path == tmp_path / "rollouts" / "step-000007.parquet"
        assert pq.read_table(path).to_pylist() == [
            {
                "step": 7, "episode": episode, "path": path, "turn": len(path), "context": context, "probe": probe,
                "response": response, "reward": reward, "probe_tokens": tokens, "naturalness": naturalness,
                "note": note,
            }
            for episode, path, context, probe, response, reward, tokens, naturalness, note in [
                (0, [0], "p", "q", "", 1.0, 3, None, None),
                (0, [0, 0], "pq", "r", "s", 2.0, 1, -1.5, None),
                (0, [0, 1], "pq", "r", "s", 2.0, 1, -1.5, None),
                (1, [0], "z", "zz", "zzz", -1.0, None, None, "n"),
            ]
        ]  # fmt: skip
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_the_types_do_not_depend_on_the_values(self, tmp_path):
        path = RunFolder(tmp_path).write_rollouts(1, [Graph(1, [Node(2, 3, 4, 1)])])

        types = {field.name: str(field.type) for field in pq.read_schema(path)}
        assert types["path"] == "list<element: int64>"
        assert (types["context"], types["probe"], types["response"]) == ("string",) * 3
        assert types["reward"] == "double"

    def test_a_missing_reward_is_null_and_a_number_all_the_same(self, tmp_path):
        info = {"reward": None, "combined_score": None, "naturalness": -1.0}

        path = RunFolder(tmp_path).write_rollouts(1, [Graph("p", [Node("p", "q", "r", None, info=info)])])

        (row,) = pq.read_table(path).to_pylist()
        assert (row["reward"], row["combined_score"], row["naturalness"]) == (None, None, -1.0)
        types = {field.name: str(field.type) for field in pq.read_schema(path)}
        assert (types["reward"], types["combined_score"]) == ("double", "double")

    def test_half_characters_are_replaced(self, tmp_path):
        # Bytes that a model breaks off come as lone surrogates from some tokenizers; UTF-8 has no room for them.
        graph = Graph("\ud83d", [Node("a\ud83d", "\udc00b", "\U0001f600", 0.0, info={"note": "c\ud800"})])

        (row,) = pq.read_table(RunFolder(tmp_path).write_rollouts(1, [graph])).to_pylist()

        assert (row["context"], row["probe"], row["response"], row["note"]) == ("a?", "?b", "\U0001f600", "c?")

    def test_nodes_of_other_packages_are_rows_too(self, tmp_path):
        sampler, _ = build_plain()

        rows = pq.read_table(RunFolder(tmp_path).write_rollouts(1, [sampler.rollout(0)])).to_pylist()

        assert rows[0].keys() == {"step", "episode", "path", "turn", "context", "probe", "response", "reward"}

    def test_an_experience_without_nodes_is_a_file_without_rows(self, tmp_path):
        assert pq.read_table(RunFolder(tmp_path).write_rollouts(1, [Graph("p", [])])).num_rows == 0
