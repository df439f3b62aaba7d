"""Trackers (``training/callbacks/trackers.py``): each is read by what its own package reads it with."""

import json
import struct
from typing import ClassVar

import pytest
import yaml
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from astra_accel import AccelTrainer, TrainingConfiguration
from astra_accel.distributed import accelerator
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.training.callbacks.console import Display
from tests.helpers.plain import build_plain
from tests.helpers.runs import metrics

HOSTILE = "\x1b[2J\x07 \ud800 \u202e ![](https://example.org/seen.png) | a | \n\n```\n # x \x00" + "y" * 1_000_000

COLUMNS = ["step", "episode", "turn", "prompt", "probe", "response", "reward"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """Everything stays in the test's folder, and nobody is told of it."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "DO_NOT_TRACK": "1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DIR": str(tmp_path),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        monkeypatch.setenv(name, value)


class Rude(int):
    """A probe or a response that trains as a number, and reads as what nobody wants in a dashboard."""

    def __str__(self):
        return HOSTILE


def as_shown(text):
    """What a person may see of a hostile text: no character of it does anything, and there is an end to it."""
    return (
        text.startswith(r"\x1b[2J\x07 \ud800 \u202e ![](https://example.org/seen.png) | a |")
        and text.endswith(f"y… ({len(HOSTILE)} characters)")
        and len(text) < 10_200
    )


@pytest.fixture
def track(tmp_path):
    """Trains two training steps, which show a conversation each, with a tracker; the lines of figures."""

    def track(name):
        sampler, algorithm = build_plain()
        rollout = sampler.rollout

        def rude(seed):
            graph = rollout(seed)
            for node in graph.children:
                node.response = Rude(node.response)
            return graph

        sampler.rollout = rude
        config = TrainingConfiguration(
            output_dir=tmp_path / "run",
            batch_size=4,
            training_steps=2,
            num_episodes_per_experience=4,
            log_with=[name],
            sample_steps=1,
            num_sample_conversations=1,
        )
        trainer = AccelTrainer(config, sampler, algorithm)
        trainer.remove_callback(Display)  # which takes longer for such texts than all the rest
        trainer.train()
        return metrics(tmp_path / "run")

    return track


def figures(lines, name):
    return {line["update"]: pytest.approx(line[name]) for line in lines}


def last_updates(lines):
    """The update under which each training step's conversations are found."""
    return [max(line["update"] for line in lines if line["step"] == step) for step in (1, 2)]


class TestTensorBoard:
    def test_its_reader_finds_figures_configuration_and_conversations(self, track, run):
        lines = track("tensorboard")

        (events,) = (file for file in (run / "astra_accel").iterdir() if file.is_file())
        read = EventAccumulator(str(events), size_guidance={"tensors": 0})
        read.Reload()
        for name in ("loss", "reward/mean", "lr"):
            assert {event.step: event.value for event in read.Scalars(name)} == figures(lines, name)
        texts = read.Tensors("samples/text_summary")
        assert [event.step for event in texts] == last_updates(lines)
        for event in texts:
            shown = event.tensor_proto.string_val[0].decode("utf-8").split("\n")
            # As code, in which nothing is Markdown.
            assert all(line.startswith("    ") for line in shown[:-1])
            assert shown[-1] == ""
            assert shown[1].startswith("    [prompt of episode 0] ")
            assert shown[2].startswith("    [tester, reward ")
            assert shown[3].startswith(
                r"    [target] \x1b[2J\x07 \ud800 \u202e ![](https://example.org/seen.png) | a |"
            )
        (configuration,) = (run / "astra_accel").glob("*/hparams.yml")
        assert yaml.safe_load(configuration.read_text())["training.batch_size"] == 4

    def test_what_a_resumed_run_does_again_is_there_once(self, make, run):
        make(training_steps=3, save_steps=1, save_total_limit=None, log_with=["tensorboard"]).train()

        make(training_steps=3, log_with=["tensorboard"]).train(run / "checkpoints" / "step-000001")

        read = EventAccumulator(str(run / "astra_accel"))
        read.Reload()
        assert [event.step for event in read.Scalars("loss")] == [line["update"] for line in metrics(run)]


class TestWandB:
    def test_its_reader_finds_figures_configuration_and_conversations(self, track, tmp_path):
        pytest.importorskip("wandb", reason="wandb is in the extra wandb alone")
        lines = track("wandb")

        history, configuration = self.read(tmp_path)
        for name in ("loss", "reward/mean", "lr"):
            assert {row["_step"]: row[name] for row in history} == figures(lines, name)
        assert configuration["training.batch_size"] == 4
        tables = {row["_step"]: row["samples.path"] for row in history if "samples.path" in row}
        assert list(tables) == last_updates(lines)
        for path in tables.values():
            (file,) = tmp_path.glob(f"wandb/offline-run-*/files/{path}")
            table = json.loads(file.read_text(encoding="utf-8"))
            assert table["columns"] == COLUMNS
            assert table["data"][0][:3] in ([1, 0, 1], [2, 0, 1])
            assert as_shown(table["data"][0][COLUMNS.index("response")])

    def read(self, folder):
        """The history and the configuration of a run that was kept offline."""
        history, configuration = [], {}
        (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        for record in self.records(file.read_bytes()):
            history += [self.values(record.history.item)] if record.HasField("history") else []
            configuration |= self.values(record.config.update)
        return history, configuration

    def values(self, items):
        return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}

    def records(self, data):
        """W&B's messages, which lie in LevelDB's log format after a header of 7 bytes."""
        from wandb.proto.wandb_internal_pb2 import Record

        assert data[:4] == b":W&B"
        place, message = 7, b""
        while place < len(data):
            left = 32768 - place % 32768  # of a block; a piece's header is never cut
            if left < 7:
                place += left
                continue
            _, length, kind = struct.unpack_from("<IHB", data, place)
            message += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last piece
                yield Record.FromString(message)
                message = b""


class TestTrackio:
    def test_its_reader_finds_figures_configuration_and_conversations(self, track):
        pytest.importorskip("trackio", reason="trackio is in the extra trackio alone")
        lines = track("trackio")

        from trackio import Api
        from trackio.sqlite_storage import SQLiteStorage

        (run,) = Api().runs("astra_accel")
        assert run.config["training.batch_size"] == 4
        logs = SQLiteStorage.get_logs("astra_accel", run.name)
        for name in ("loss", "reward/mean", "lr"):
            assert {log["step"]: log[name] for log in logs if name in log} == figures(lines, name)
        tables = {log["step"]: log["samples"]["_value"] for log in logs if "samples" in log}
        assert list(tables) == last_updates(lines)
        for rows in tables.values():
            assert list(rows[0]) == COLUMNS
            assert as_shown(rows[0]["response"])


class TestMLflow:
    def test_its_client_finds_figures_configuration_and_conversations(self, track):
        mlflow = pytest.importorskip("mlflow", reason="mlflow is in the extra mlflow alone")
        lines = track("mlflow")

        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("astra_accel")
        (found,) = client.search_runs([experiment.experiment_id])
        assert found.data.params["training.batch_size"] == "4"
        for name in ("loss", "reward/mean", "lr"):
            history = client.get_metric_history(found.info.run_id, name)
            assert {metric.step: metric.value for metric in history} == figures(lines, name)
        mlflow.set_experiment("astra_accel")  # of which tables are looked up
        table = mlflow.load_table("samples.json", run_ids=[found.info.run_id])
        assert list(table.columns) == COLUMNS
        assert sorted(set(table["step"])) == [1, 2]
        assert as_shown(table["response"][0])
        assert found.info.status == "FINISHED"


class OwnTracker(GeneralTracker):
    """Remembers what it is told."""

    name, requires_logging_directory = "own", False
    runs: ClassVar[list] = []

    def __init__(self, run_name):
        super().__init__()
        self.told = []
        self.runs.append(self.told)

    @property
    def tracker(self):
        return self.told

    def store_init_configuration(self, values):
        self.told.append(("configuration", values))

    def log(self, values, step=None):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finished")


class TestOwnTracker:
    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "own", OwnTracker)
        monkeypatch.setattr(OwnTracker, "runs", [])

    def test_without_a_place_for_texts_it_gets_figures_and_configuration(self, track):
        lines = track("own")

        ((told),) = OwnTracker.runs
        (first, configuration), *logged, last = told
        assert (first, configuration["training.log_with"], last) == ("configuration", "['own']", "finished")
        assert logged == [(line["update"], line) for line in lines]

    def test_a_second_training_begins_it_anew(self, make):
        trainer = make(log_with=["own"], training_steps=1)

        trainer.train()
        trainer.train(trainer.folder.checkpoints / "step-000001")

        assert [told[-1] for told in OwnTracker.runs] == ["finished", "finished"]

    def test_one_that_was_begun_before_is_used_and_left_open(self, run):
        accelerator = Accelerator(cpu=True, log_with="own")
        accelerator.init_trackers("mine", config={"by": "hand"})

        config = TrainingConfiguration(output_dir=run, training_steps=1, sample_steps=None)
        AccelTrainer(config, *build_plain(), accelerator=accelerator).train()

        ((told),) = OwnTracker.runs
        assert told[0] == ("configuration", {"by": "hand"})
        assert told[-1][1]["step"] == 1

    def test_texts_that_no_file_can_hold_are_replaced(self, make):
        class Noting:
            def on_log(self, trainer, record):
                record["note"] = "half \ud83d"

        make(extras={"callbacks": [Noting()]}, log_with=["own"], training_steps=1).train()

        assert OwnTracker.runs[0][1][1]["note"] == "half ?"


class TestCheck:
    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch):
        monkeypatch.setattr(accelerator, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])

    def make(self, tmp_path, *names):
        return make_accelerator(TrainingConfiguration(log_with=names, output_dir=tmp_path))

    def test_those_that_are_installed_are_taken(self, tmp_path):
        assert self.make(tmp_path, "tensorboard").log_with == [LoggerType.TENSORBOARD]

    def test_none_is_needed(self):
        assert make_accelerator(TrainingConfiguration()).log_with == []

    def test_one_that_there_is_not_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"training\.log_with has 'tensorbord'; expected some of .*tensorboard"):
            self.make(tmp_path, "tensorboard", "tensorbord")

    @pytest.mark.parametrize(
        ("name", "install"),
        [("wandb", r"'astra-accel\[wandb\]'"), ("mlflow", r"'astra-accel\[mlflow\]'"), ("aim", "aim")],
    )
    def test_one_whose_package_is_missing_is_named_with_what_to_install(self, tmp_path, name, install):
        # Accelerate would drop it and say nothing: a run without its figures.
        expected = rf"has '{name}', .*not installed; installed are: tensorboard \(pip install {install}\)"
        with pytest.raises(ValueError, match=expected):
            self.make(tmp_path, "tensorboard", name)

    def test_one_that_writes_files_needs_the_output_folder(self):
        for name in ("tensorboard", "all"):
            with pytest.raises(ValueError, match=r"'tensorboard', which writes files; expected a training\.output_dir"):
                self.make(None, name)

    def test_one_that_a_user_registered_is_taken(self, tmp_path, monkeypatch):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "own", OwnTracker)

        assert self.make(tmp_path, "own").log_with == ["own"]
