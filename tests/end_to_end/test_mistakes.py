"""Bad input ends with one clear message and exit code 2, before any weights load and with nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
from transformers import BertConfig

from astra_accel.cli import main as cli_main
from astra_accel.jobs.train import main
from astra_accel.models.loading import model_files
from astra_accel.models.loading.tiny import save_tiny
from tests.helpers.own_code import save_with_own_code
from tests.helpers.plain import reset_accelerate
from tests.helpers.runs import TINY_DPO

Arguments = list[str]


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights is what none of these mistakes may get to."""
    reset_accelerate()

    def load(*_: object) -> None:
        raise AssertionError("weights were loaded before the mistake was found")

    monkeypatch.setattr(model_files.ModelFiles, "load", load)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def _prompts(content: str, suffix: str = "jsonl") -> Callable[[Path], Arguments]:
    def arguments(folder: Path) -> Arguments:
        file = folder / f"prompts.{suffix}"
        file.write_text(content, encoding="utf-8")
        return ["--prompts.train.source", str(file)]

    return arguments


def _rows(*rows: object) -> str:
    return "\n".join(json.dumps({"text": row}) for row in rows) + "\n"


def _model_folder(prepare: Callable[[Path], None]) -> Callable[[Path], Arguments]:
    def arguments(folder: Path) -> Arguments:
        save_tiny(folder / "model", "llama")
        prepare(folder / "model")
        return ["--tester.path", str(folder / "model")]

    return arguments


def _pointer(name: str) -> Callable[[Path], None]:
    def replace(model: Path) -> None:
        (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1000\n")

    return replace


def _half(model: Path) -> None:
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def _encoder(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    BertConfig(vocab_size=config["vocab_size"]).save_pretrained(model)


def _own_code(folder: Path) -> Arguments:
    return ["--tester.path", str(save_with_own_code(folder / "model"))]


def _without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def _damaged_adapter(folder: Path) -> Arguments:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    _pointer("adapter_model.safetensors")(folder / "adapter")
    return ["--target.adapter", str(folder / "adapter")]


def _without_weights(model: Path) -> None:
    for file in model.glob("*.safetensors"):
        file.unlink()


def _without_pad_and_end(model: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (model / name).exists():
            config = json.loads((model / name).read_text())
            for token in ("pad_token", "eos_token"):
                config.pop(token, None)
            (model / name).write_text(json.dumps(config))


def _fixed(*arguments: str) -> Callable[[Path], Arguments]:
    return lambda _: list(arguments)


def _config(text: str) -> Callable[[Path], Arguments]:
    def arguments(folder: Path) -> Arguments:
        (folder / "run.yaml").write_text(text, encoding="utf-8")
        return ["--config", str(folder / "run.yaml")]

    return arguments


def _held_run(folder: Path) -> Arguments:
    (folder / "run" / "checkpoints" / "step-000007").mkdir(parents=True)
    (folder / "run" / "metrics.jsonl").write_text("{}\n")
    return []


def _ended_run(folder: Path) -> Arguments:
    (folder / "run" / "tester").mkdir(parents=True)
    return ["--resume", "auto"]


def _trained_and_held_out(folder: Path) -> Arguments:
    train = _prompts(_rows("Seen before."))(folder)
    return [*train, "--prompts.dev.source", train[-1], "--prompts.dev.split", "train"]


MISTAKES = {
    "optimizer": (_fixed("--training.optimizer", "adamx"), ["training.optimizer", "'adamx'", "adamw"]),
    "bound on no figure": (
        _fixed("--training.best_bounds", '{"perplexity": 1.3}'),
        ["training.best_bounds", "'perplexity'", "probe_perplexity/median", "self_bleu", "reward/mean"],
    ),
    "bound that bounds nothing": (
        _fixed("--training.best_bounds", '{"diversity/self_bleu": 1.3}'),
        ["training.best_bounds.diversity/self_bleu", "at most 1.3 times", "{min: FACTOR}", "a bound on self_bleu"],
    ),
    "bounds without evaluations": (
        _fixed("--training.best_bounds", '{"self_bleu": 1.3}', "--training.eval_steps", "null"),
        ["best_bounds is set, but eval_steps is null"],
    ),
    "scheduler": (_fixed("--training.lr_scheduler", "cosin"), ["training.lr_scheduler", "'cosin'", "cosine"]),
    "scorer": (_fixed("--scorer.name", "perspective"), ["scorer.name", "perspective", "profanity", "llama_guard"]),
    "scorer option": (_fixed("--scorer.options", '{"colour": "red"}'), ["profanity", "colour"]),
    "algorithm": (_fixed("--algorithm.name", "dpoo"), ["algorithm.name", "'dpoo'", "dpo"]),
    "algorithm option": (
        _fixed("--algorithm.options", '{"betta": 1}'),
        ["algorithm.options", "'betta'", "did you mean 'beta'?"],
    ),
    "algorithm option of another type": (
        _fixed("--algorithm.options", '{"beta": "0.1"}'),
        ["algorithm.options.beta", "'0.1'", "number"],
    ),
    "algorithm option without a value": (
        _fixed("--algorithm.options", '{"beta": null}'),
        ["algorithm.options.beta", "None", "number"],
    ),
    "scorer option of another type": (
        _fixed("--scorer.options", '{"batch_size": "x"}'),
        ["scorer.options.batch_size", "'x'", "integer"],
    ),
    "schedule": (
        _fixed("--training.lr_scheduler", "cosine", "--training.lr_scheduler_kwargs", '{"num_cycles": "x"}'),
        ["training.lr_scheduler_kwargs", "num_cycles", "'x'"],
    ),
    "floor of fluency that nothing reaches": (
        _fixed("--algorithm.name", "ctb", "--algorithm.options", '{"min_k_floor": 10}'),
        ["min_k_floor is 10", "below 0"],
    ),
    "share of tokens": (
        _fixed("--algorithm.name", "ctb", "--algorithm.options", '{"min_k": 7}'),
        ["min_k is 7", "at most 1"],
    ),
    "share of probes": (
        _fixed("--algorithm.name", "mle", "--algorithm.options", '{"best": 1.5}'),
        ["best is 1.5", "at most 1"],
    ),
    "temperature of returns": (
        _fixed("--algorithm.name", "mle", "--algorithm.options", '{"tau": 0}'),
        ["tau is 0", "more than 0"],
    ),
    "how greedy": (_fixed("--algorithm.name", "tb", "--algorithm.options", '{"beta": 0}'), ["beta is 0"]),
    "algorithm value": (_fixed("--algorithm.options", '{"beta": -1}'), ["beta is -1"]),
    "reward term": (
        _config("reward: {novel_weight: 1}\n"),
        ["run.yaml: reward: found novel_weight", "combined_weight", "repetition_weight"],
    ),
    "reservoir": (_fixed("--reward.reservoir_size", "0"), ["reward.reservoir_size", "greater than or equal to 1"]),
    "embedding model": (
        _fixed("--reward.embedding_novelty_weight", "1", "--reward.embedding_model", "nobody/nothing"),
        ["reward.embedding_model", "nobody/nothing"],
    ),
    "algorithm variant": (
        _fixed("--algorithm.name", "grpo", "--algorithm.options", '{"normalization": "dapo"}'),
        ["normalization is 'dapo'", "sequence, token, constant"],
    ),
    "clip range": (
        _fixed("--algorithm.name", "ppo", "--algorithm.options", '{"clip": 0}'),
        ["clip is 0", "more than 0"],
    ),
    "replay share": (
        _fixed("--training.replay.share", "1.5"),
        ["training.replay.share", "'1.5'", "less than 1"],
    ),
    "no replay share": (
        _fixed("--training.replay.share", "0"),
        ["training.replay.share", "'0'", "greater than 0"],
    ),
    "replay share below 0": (
        _fixed("--training.replay.share", "-0.5"),
        ["training.replay.share", "'-0.5'", "greater than 0"],
    ),
    "small replay": (
        _fixed("--training.replay.size", "7"),
        ["replay.size is 7", "an update takes 8 examples", "at least 8"],
    ),
    "replay of an algorithm on policy": (
        _fixed("--training.replay.size", "64", "--algorithm.name", "grpo"),
        ["training.replay", "GRPO learns on-policy", "dpo, ipo"],
    ),
    "examples of an algorithm on policy": (
        _fixed("--rollout.few_shot", '{"examples": ["a"], "number": 1}', "--algorithm.name", "grpo"),
        ["few_shot is set", "GRPO learns on-policy", "expected null"],
    ),
    "too few examples": (
        _fixed("--rollout.few_shot", '{"examples": ["a"], "number": 2}'),
        ["rollout.few_shot", "number is 2", "there are 1 examples"],
    ),
    "group of one": (
        _fixed("--algorithm.name", "grpo", "--rollout.tree_width", "1"),
        ["tree_width is 1", "episodes_per_prompt 1", "GRPO", "at least 2 of either"],
    ),
    "episodes of a prompt": (
        _fixed("--rollout.episodes_per_prompt", "3"),
        ["rollout.episodes_per_prompt is 3", "num_episodes_per_experience is 4"],
    ),
    "field": (_fixed("--training.learning_rate", "1"), ["training.learning_rate"]),
    "batch size": (_fixed("--training.batch_size", "0"), ["training.batch_size", "'0'", "greater than or equal to 1"]),
    "training steps": (_fixed("--training.training_steps", "0"), ["training.training_steps"]),
    "tree width": (_fixed("--rollout.tree_width", "1"), ["tree_width is 1", "DPO", "at least 2"]),
    "empty prompts": (_prompts(""), ["prompts.jsonl"]),
    "no column": (
        lambda folder: [*_prompts(_rows("Hi there."))(folder), "--prompts.train.column", "question"],
        ["question", "text"],
    ),
    "data set of the hub, offline": (
        _fixed("--prompts.train.source", "someone/prompts"),
        ["prompts.train", "someone/prompts", "HF_HUB_OFFLINE is set"],
    ),
    "prompts that are not there": (
        _fixed("--prompts.dev.source", "./nowhere.jsonl"),
        ["prompts.dev.source", "nowhere.jsonl", "no such file"],
    ),
    "model of a scorer": (
        _fixed("--scorer.name", "classifier", "--scorer.options", '{"model": "./nowhere", "label": "x"}'),
        ["the scorer's option model", "./nowhere", "no such folder"],
    ),
    "blank prompt": (_prompts(_rows("Hi there.", "One more.", "  ")), ["prompts.jsonl", "row 3"]),
    "prompt of another type": (_prompts(_rows("Hi there.", 7)), ["row 2", "7"]),
    "long prompt": (_prompts(_rows("Hi there.", "a" * 600)), ["prompts.train, row 2", "512"]),
    "model without weights": (_model_folder(_without_weights), ["tester.path", "no weights", "safetensors"]),
    "pointer of Git LFS": (
        _model_folder(_pointer("model.safetensors")),
        ["tester.path", "model.safetensors is a pointer of Git LFS", "git lfs pull"],
    ),
    "half of the weights": (_model_folder(_half), ["tester.path", "model.safetensors has", "cut off"]),
    "tokenizer is a pointer": (
        _model_folder(_pointer("tokenizer.json")),
        ["tester.path", "tokenizer.json is a pointer"],
    ),
    "tokenizer missing": (_model_folder(_without_tokenizer), ["tester.path", "tokenizer", "expected tokenizer.json"]),
    "damaged adapter": (_damaged_adapter, ["target.adapter", "adapter_model.safetensors is a pointer of Git LFS"]),
    "encoder": (
        _model_folder(_encoder),
        ["tester.path", "model_type 'bert'", "expected a causal language model"],
    ),
    "code of its own": (_own_code, ["tester.trust_remote_code", "configuration_own.py", "modeling_own.py"]),
    "tokenizer without pad and end": (_model_folder(_without_pad_and_end), ["tester", "neither a pad token nor"]),
    "LoRA target": (
        _fixed("--lora.target_modules", '["attention"]'),
        ["lora.target_modules", "attention", "q_proj", "down_proj"],
    ),
    "no such model": (_fixed("--target.path", "nobody/nothing"), ["target.path", "nobody/nothing"]),
    "held run": (_held_run, ["already holds a run", "--resume", "step-000007", "overwrite_output_dir"]),
    "resume path": (
        lambda folder: ["--resume", str(folder)],
        ["is not a checkpoint", "manifest.json"],
    ),
    "automatic resume of a run that ended": (_ended_run, ["already holds a run (tester)", "overwrite_output_dir"]),
    "held-out prompt": (_trained_and_held_out, ["dev", "Seen before."]),
    "context limit": (_fixed("--rollout.context_limit", "100000"), ["rollout.context_limit", "512"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_message(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_arguments, expected = MISTAKES[name]
    arguments = make_arguments(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    code = main(["--config", str(TINY_DPO), "--training.output_dir", str(tmp_path / "run"), *arguments])
    message = capsys.readouterr().err
    assert code == 2
    assert message.startswith("error: ")
    for part in expected:
        assert part in message, message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_configuration_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "nowhere.yaml"]) == 2
    assert "no configuration file at nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, lambda job: cli_main(["train", "--accelerate-config", "cpu_2", *job])])
def test_an_automatic_resume_without_an_output_folder(
    command: Callable[[Arguments], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["--config", str(TINY_DPO), "--training.output_dir", "null", "--resume", "auto"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "training.output_dir" in message
    assert "null" in message


def test_an_unknown_accelerate_configuration_is_named_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli_main(["train", "--config", str(TINY_DPO), "--accelerate-config", "cpu_3"]) == 2
    message = capsys.readouterr().err
    assert "cpu_3" in message
    assert "cpu_2" in message
    assert "multi_gpu" in message
