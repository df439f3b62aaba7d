import hashlib
import json
import os
import pickle
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from astra_accel.files.atomic import sha256
from astra_accel.training.checkpoint import layout, verify
from astra_accel.training.checkpoint.layout import (
    CheckpointError,
    CheckpointFormatError,
    TrainerState,
    checkpoint_name,
    list_checkpoints,
    prune_checkpoints,
    read_config,
)
from astra_accel.training.checkpoint.load import load_checkpoint, load_weights
from astra_accel.training.checkpoint.verify import (
    newest_checkpoint,
    newest_together,
    verify_checkpoint,
    verify_together,
)
from astra_accel.training.optim import OPTIMIZERS
from tests.helpers.checkpoints import FILES, build, contents, read_state, save_checkpoint, update
from tests.helpers.processes import run_processes


def rewrite_manifest(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class TestRoundTrip:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("scheduler", ["cosine", "reduce_lr_on_plateau"])
    def test_weights_optimizer_and_schedule_come_back_bit_for_bit(self, tmp_path, optimizer, scheduler):
        settings = {"optimizer": optimizer, "lr_scheduler": scheduler, "warmup_steps": 0, "weight_decay": 0.1}
        first = build(**settings)
        update(first, 3)
        path = save_checkpoint(first, tmp_path)
        then = contents(first)
        update(first, 2)
        assert contents(first) != then

        second = build(seed=5, **settings)
        assert contents(second)[0] != then[0]
        state = load_checkpoint(second, path)
        assert contents(second) == then
        assert state == TrainerState(step=3, update=3)

        update(second, 2)
        assert contents(second) == contents(first)

    def test_the_random_generators_go_on_where_they_were(self, tmp_path):
        training = build()
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(3)

        def draw():
            # An odd number of Gaussians: the generators of Python and NumPy make two at a time and keep one.
            return random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.randn(3).tolist()

        draw()
        path = save_checkpoint(training, tmp_path)
        expected = [draw() for _ in range(3)]
        load_checkpoint(training, path)

        assert [draw() for _ in range(3)] == expected

    def test_a_process_that_there_was_not_keeps_its_own_random_states(self, saved):
        training = build()
        (saved / "random_states_0.pt").rename(saved / "random_states_1.pt")
        rewrite_manifest(
            saved, lambda m: m["files"].update({"random_states_1.pt": m["files"].pop("random_states_0.pt")})
        )
        torch.manual_seed(3)
        expected = torch.rand(2).tolist()
        torch.manual_seed(3)

        load_checkpoint(training, saved)

        assert torch.rand(2).tolist() == expected

    def test_counters_and_configuration_come_back(self, tmp_path):
        training = build()
        training.state = TrainerState(step=7, update=20, empty_in_row=2, best_value=0.1, best_step=4)
        path = save_checkpoint(training, tmp_path)

        assert path == tmp_path / "step-000007"
        assert read_state(path) == load_checkpoint(build(), path) == training.state
        assert read_config(path) == training.config_yaml

    def test_what_rollouts_depend_on_comes_back_where_a_system_tells(self, tmp_path):
        class Remembering:
            def __init__(self, memory):
                self.memory = memory

            def rollout_state(self):
                return self.memory

            def load_rollout_state(self, state):
                self.memory = state

        said = {"term": {"texts": ["a", "\ud800"], "numbers": [0.1 + 0.2], "vectors": torch.rand(2, 3)}}
        training = build()
        training.system = Remembering(said)
        path = save_checkpoint(training, tmp_path)
        resumed = build()
        resumed.system = Remembering({})

        load_checkpoint(resumed, path)

        vectors = resumed.system.memory["term"].pop("vectors")
        assert torch.equal(vectors, said["term"].pop("vectors"))
        assert resumed.system.memory == said
        load_checkpoint(build(), path)  # a system that has no use for it

    def test_there_is_no_file_of_nothing(self, tmp_path):
        training = build()
        training.system = SimpleNamespace(rollout_state=dict, load_rollout_state=pytest.fail)
        path = save_checkpoint(training, tmp_path)

        assert {file.name for file in path.iterdir()} == FILES
        load_checkpoint(training, path)

    def test_weights_alone(self, saved):
        training = build(seed=5)
        before = contents(training)

        load_weights(training.engine, saved)

        after = contents(training)
        assert after[0] != before[0]
        assert after[0] == {
            name: tensor.numpy().tobytes() for name, tensor in load_file(saved / layout.WEIGHTS).items()
        }
        assert after[1:] == before[1:]

    def test_loading_keeps_the_tensors_that_the_optimizer_holds(self, saved):
        training = build(seed=5)
        parameters = list(training.engine.module.parameters())

        load_checkpoint(training, saved)

        held = [parameter for group in training.engine.optimizer.param_groups for parameter in group["params"]]
        assert {id(parameter) for parameter in held} == {id(parameter) for parameter in parameters}
        before = contents(training)[0]
        update(training)
        assert contents(training)[0] != before


class TestFiles:
    def test_there_are_these_and_all_are_in_the_manifest(self, saved):
        assert {path.name for path in saved.iterdir()} == FILES
        manifest = json.loads((saved / "manifest.json").read_text())
        assert manifest["format"] == 1
        assert manifest["files"] == {
            name: {
                "size": (saved / name).stat().st_size,
                "sha256": hashlib.sha256((saved / name).read_bytes()).hexdigest(),
            }
            for name in FILES - {"manifest.json"}
        }

    def test_the_weights_are_those_that_are_trained_by_name(self, saved):
        assert set(load_file(saved / "trained.safetensors")) == {
            "policy.weight",
            "value_head.weight",
            "value_head.bias",
        }

    def test_nothing_needs_more_than_weights_only(self, saved):
        pickled = [path for path in saved.iterdir() if path.suffix == ".pt"]
        assert {path.name for path in pickled} == {"optimizer.pt", "random_states_0.pt"}
        for path in pickled:
            torch.load(path, weights_only=True)

    @pytest.mark.parametrize("name", ["optimizer.pt", "random_states_0.pt"])
    def test_what_would_run_code_is_refused(self, saved, name, tmp_path):
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "attacked"),)

        torch.save({"optimizer": Attack()}, saved / name)
        data = (saved / name).read_bytes()
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        rewrite_manifest(saved, lambda manifest: manifest["files"].update({name: entry}))

        with pytest.raises(pickle.UnpicklingError):
            load_checkpoint(build(), saved)
        assert not (tmp_path / "attacked").exists()

    def test_nothing_else_is_left_in_the_folder(self, saved):
        assert [path.name for path in saved.parent.iterdir()] == ["step-000003"]


class TestOnce:
    """A checkpoint is read in full once, whatever is done with it afterwards."""

    def test_a_verified_one_is_not_read_again(self, saved, monkeypatch):
        whole = verify_checkpoint(saved)
        monkeypatch.setattr(verify, "sha256", pytest.fail)

        load_checkpoint(build(), whole)
        load_weights(build().engine, whole)
        accelerator = Accelerator(cpu=True)
        assert newest_together(accelerator, saved.parent, whole) == (whole, [])

    def test_a_resumed_run_reads_each_file_once(self, make, run, monkeypatch):
        make(training_steps=1, save_steps=1).train()
        hashed = []
        monkeypatch.setattr(verify, "sha256", lambda path: hashed.append(path.name) or sha256(path))

        make(training_steps=2, save_steps=None).train("auto")

        assert sorted(hashed) == sorted(FILES - {"manifest.json"})

    def test_processes_share_the_files_and_all_learn_what_is_wrong(self, tmp_path):
        training = build()
        path = save_checkpoint(training, tmp_path)
        flip_bit(path / "trained.safetensors")

        outcomes = run_processes(2, _verified, path)

        (mine, _), (theirs, _) = outcomes
        assert mine
        assert theirs
        assert not set(mine) & set(theirs)
        assert {message for _, message in outcomes} == {
            f"{path / 'trained.safetensors'} has changed since it was written: it is damaged"
        }


def _verified(path):
    """The files that this process read, and what it was told."""
    hashed = []
    verify.sha256 = lambda file: hashed.append(file.name) or sha256(file)
    with pytest.raises(CheckpointError) as caught:
        verify_together(Accelerator(cpu=True), path)
    return hashed, str(caught.value)


class TestVerification:
    def test_a_whole_checkpoint_is_fine(self, saved):
        verify_checkpoint(saved)

    @pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path: path.unlink(), "is missing"),
            (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"has \d+ bytes, expected \d+: it is damaged"),
            (lambda path: path.write_bytes(b""), "has 0 bytes"),
            (flip_bit, "has changed since it was written: it is damaged"),
        ],
        ids=["missing", "truncated", "empty", "bit flipped"],
    )
    def test_a_damaged_file_is_named_and_nothing_is_loaded(self, saved, name, damage, message):
        damage(saved / name)
        training = build(seed=5)
        before = contents(training)

        for read in (verify_checkpoint, lambda path: load_weights(training.engine, path)):
            with pytest.raises(CheckpointError, match=f"{name} {message}"):
                read(saved)
        with pytest.raises(CheckpointError, match=f"{name} {message}"):
            load_checkpoint(training, saved)

        assert contents(training) == before

    @pytest.mark.parametrize(
        "text",
        ["", '{"format": 1, "fil', "[]", "3", '{"files": {}}', '{"format": 1}', '{"format": 1, "files": []}',
         '{"format": 1, "files": {"config.yaml": 3}}', '{"format": 1, "files": {"config.yaml": {"size": 3}}}', "\0"],
    )  # fmt: skip
    def test_a_damaged_manifest_is_named(self, saved, text):
        (saved / "manifest.json").write_text(text)

        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            verify_checkpoint(saved)

    def test_another_format_is_named(self, saved):
        rewrite_manifest(saved, lambda manifest: manifest.update(format=2))

        with pytest.raises(CheckpointError, match=r"step-000003 has checkpoint format 2; this version reads 1"):
            verify_checkpoint(saved)

    def test_the_weights_of_another_model_are_named(self, saved):
        training = build()
        training.engine.module.value_head = torch.nn.Linear(5, 2)

        with pytest.raises(CheckpointError, match=r"another model: 2 of them differ .*value_head\.weight"):
            load_checkpoint(training, saved)
        training.engine.module.more = torch.nn.Linear(1, 1)
        del training.engine.module.policy
        with pytest.raises(CheckpointError, match=r"3 of them differ .*more\.bias, more\.weight, policy\.weight"):
            load_weights(training.engine, saved)

    def test_what_is_no_checkpoint_names_those_near_it(self, saved, tmp_path):
        run, folder = saved.parent.parent, saved.parent
        for path in (run, folder, folder / "step-000004", folder / "manifest.json"):
            with pytest.raises(CheckpointError) as caught:
                verify_checkpoint(path)
            assert f"{path} is not a checkpoint" in str(caught.value)
            assert f"; there are {saved}" in str(caught.value)

        with pytest.raises(CheckpointError, match=r"nowhere is not a checkpoint \(it has no manifest\.json\)$"):
            verify_checkpoint(tmp_path / "empty" / "nowhere")


class TestNewest:
    @pytest.fixture
    def three(self, tmp_path):
        """A folder with whole checkpoints of steps 1, 2 and 3."""
        training = build()
        for _ in range(3):
            update(training)
            save_checkpoint(training, tmp_path)
        return tmp_path

    def test_it_is_the_last_that_is_whole(self, three):
        assert newest_checkpoint(three) == (three / "step-000003", [])

    def test_what_is_not_whole_is_passed_over_and_named_the_newest_first(self, three):
        (three / "step-000003" / "manifest.json").unlink()
        flip_bit(three / "step-000002" / "optimizer.pt")

        found, passed_over = newest_checkpoint(three)

        assert found == three / "step-000001"
        unfinished, damaged = passed_over
        assert unfinished.startswith(f"{three / 'step-000003'} is not a checkpoint (it has no manifest.json)")
        assert damaged.startswith(f"{three / 'step-000002' / 'optimizer.pt'} has changed")

    def test_one_of_another_version_is_not_passed_over(self, three):
        rewrite_manifest(three / "step-000003", lambda manifest: manifest.update(format=2))

        with pytest.raises(CheckpointFormatError, match="step-000003 has checkpoint format 2"):
            newest_checkpoint(three)

    def test_there_may_be_none(self, three, tmp_path):
        for name in ("step-000001", "step-000002", "step-000003"):
            (three / name / "trained.safetensors").unlink()

        found, passed_over = newest_checkpoint(three)

        assert found is None
        assert len(passed_over) == 3
        assert newest_checkpoint(tmp_path / "absent") == (None, [])


class TestKeeping:
    @pytest.fixture
    def folder(self, saved):
        for step in (1, 2, 9, 10, 1000000):
            shutil.copytree(saved, saved.parent / checkpoint_name(step))
        return saved.parent

    def steps(self, folder):
        return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]

    def test_they_are_listed_oldest_first(self, folder):
        assert self.steps(folder) == [1, 2, 3, 9, 10, 1000000]

    def test_only_complete_ones_with_their_own_name_are_listed(self, folder):
        (folder / "step-000001" / "manifest.json").unlink()
        (folder / "step-000002").rename(folder / ".step-000002.tmp")
        (folder / "step-000003").rename(folder / "step-000003-copy")
        (folder / "step-000009").rename(folder / "step-9")

        assert self.steps(folder) == [10, 1000000]

    def test_the_newest_are_kept(self, folder):
        prune_checkpoints(folder, 2, 1000000, best_step=None)

        assert self.steps(folder) == [10, 1000000]

    def test_the_best_is_kept_aside(self, folder):
        prune_checkpoints(folder, 2, 1000000, best_step=2)

        assert self.steps(folder) == [2, 10, 1000000]

    def test_the_best_may_be_among_the_newest(self, folder):
        prune_checkpoints(folder, 2, 1000000, best_step=10)

        assert self.steps(folder) == [10, 1000000]

    def test_all_are_kept_where_there_are_few_or_no_limit(self, folder):
        prune_checkpoints(folder, 6, 1000000, best_step=None)
        prune_checkpoints(folder, None, 1000000, best_step=None)

        assert self.steps(folder) == [1, 2, 3, 9, 10, 1000000]

    def test_those_of_a_run_that_was_taken_up_before_them_do_not_pass_for_the_newest(self, folder):
        prune_checkpoints(folder, 2, 9, best_step=1)

        assert self.steps(folder) == [1, 3, 9]

    def test_what_is_no_checkpoint_is_left_alone(self, folder):
        (folder / "step-000001" / "manifest.json").unlink()
        (folder / "notes").mkdir()

        prune_checkpoints(folder, 1, 1000000, best_step=None)

        assert sorted(path.name for path in folder.iterdir()) == ["notes", "step-000001", "step-1000000"]
