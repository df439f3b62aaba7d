import hashlib
import json

import pytest

from astra_accel import AccelTrainer, ASTSampler, TrainingConfiguration
from astra_accel.training.checkpoint.layout import PROMPTS, CheckpointError
from astra_accel.training.prompt_digests import changed_prompts, digests_of
from astra_accel.training.resume import changes_since
from tests.helpers.runs import train_tiny

CONFIG = "training: {lr: 0.1}\nprompts:\n  train: {source: a.txt}\n"


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / PROMPTS).write_text(json.dumps(digests_of({"train": ["a", "b"], "dev": ["c"]})))
    return tmp_path


def changes(checkpoint, config=CONFIG, allowed=False, **prompts):
    return changes_since(checkpoint, config, digests_of(prompts), allowed)


def test_a_digest_is_of_the_texts_and_their_order():
    digests = digests_of({"train": ["a", "\ud83d"], "dev": [], "test": None, "other": [1, 2]})

    assert digests == {"train": {"number": 2, "sha256": hashlib.sha256(b'["a", "\\ud83d"]').hexdigest()}}
    assert changed_prompts(digests_of({"train": ["a", "b"]}), digests_of({"train": ["b", "a"]}))
    assert not changed_prompts(digests_of({"train": ["a", "b"]}), digests_of({"train": ("a", "b")}))


def test_the_same_prompts_are_no_change(checkpoint):
    assert changes(checkpoint, train=["a", "b"], dev=["c"], test=["d"]) == []


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"train": ["a", "b", "c2"], "dev": ["c"]}, r"prompts\.train: 2 prompts \(sha256 \w{12}\), now 3 prompts"),
        ({"train": ["a", "x"], "dev": ["c"]}, r"prompts\.train: 2 prompts .*, now 2 prompts"),
        ({"train": ["a", "b"], "dev": ["x"]}, r"prompts\.dev: 1 prompts .*, now 1 prompts"),
    ],
)
def test_a_file_that_changed_is_refused_or_told(checkpoint, others, named):
    with pytest.raises(CheckpointError, match=rf"{named}.*--training\.allow_changed_prompts true"):
        changes(checkpoint, **others)

    (line,) = changes(checkpoint, allowed=True, **others)
    assert line.startswith("prompts.")


def test_prompts_that_are_asked_for_are_told_as_any_changed_field(checkpoint):
    told = changes(checkpoint, CONFIG.replace("a.txt", "b.txt"), train=["x"], dev=["c"])

    assert told[0] == "prompts.train.source: 'a.txt', now 'b.txt'"
    assert told[1].startswith("prompts.train: 2 prompts")


def test_older_checkpoints_that_say_nothing_are_gone_on_from(checkpoint):
    (checkpoint / PROMPTS).unlink()

    assert changes(checkpoint, train=["x"]) == []


def test_a_run_notices_before_weights_load(tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Good morning.\nHow are you?\n")
    settings = [
        *("--training.training_steps", "1", "--training.eval_steps", "null", "--training.save_steps", "1"),
        *("--prompts.train.source", str(prompts), "--prompts.dev", "null", "--prompts.test", "null"),
    ]
    run = tmp_path / "run"
    train_tiny(run, *settings)
    step = run / "checkpoints" / "step-000001"
    more = [*settings, "--training.training_steps", "2"]
    prompts.write_text("Good morning.\nHow was it?\n")

    with monkeypatch.context() as patch:
        patch.setattr("astra_accel.jobs.train.build_sampler", None)
        with pytest.raises(CheckpointError, match=r"prompts\.train: 2 prompts"):
            train_tiny(run, *more, resume=step)

    trainer = train_tiny(run, *more, "--training.allow_changed_prompts", "true", resume=step)
    assert trainer.state.step == 2


def test_a_trainer_asks_its_sampler(tmp_path):
    from astra_accel import DPO, HFASTSystem

    system = HFASTSystem("tiny", "tiny")
    config = TrainingConfiguration(output_dir=tmp_path)

    trainer = AccelTrainer(config, ASTSampler(system, ["a", "b"], 2, 1, ["c"]), DPO(system))

    assert trainer.prompts == digests_of({"train": ["a", "b"], "dev": ["c"]})
