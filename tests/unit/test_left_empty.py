"""What a file of a configuration leaves empty is not taken for `null` where that means something."""

import pytest

from astra_accel.config import RunConfiguration
from astra_accel.errors import ConfigurationError


def load(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return RunConfiguration.load(file)


@pytest.mark.parametrize(
    ("text", "line", "name"),
    [
        ("training: {lr: 0.1}\nlora:\n  # r: 8\n  # alpha: 16\n", 2, "lora"),
        ("lora:\n", 1, "lora"),
        ("baseline:\n", 1, "baseline"),
        ("prompts:\n  dev:\n    # source: mine.txt\n", 2, "prompts.dev"),
        ("prompts:\n  test:\n  dev: null\n", 2, "prompts.test"),
        ("training:\n", 1, "training"),
        ("rollout:\n  tester:\n", 2, "rollout.tester"),
        ("training: {save_steps: , lr: 0.1}\n", 1, "training.save_steps"),
        ("training:\n  log_with:\n", 2, "training.log_with"),
        ("algorithm:\n  options:\n    # beta: 0.1\n", 2, "algorithm.options"),
        ("algorithm:\n  options:\n    beta:\n", 3, "algorithm.options.beta"),
        ("evaluation:\n  scorers:\n    own:\n", 3, "evaluation.scorers.own"),
    ],
)
def test_it_is_refused_with_its_line(tmp_path, text, line, name):
    with pytest.raises(ConfigurationError, match=rf"run\.yaml, line {line}: {name} is left empty .* or null if none"):
        load(tmp_path, text)


@pytest.mark.parametrize("null", ["null", "~", "Null", "NULL"])
def test_null_is_null(tmp_path, null):
    config = load(tmp_path, f"lora: {null}\nprompts: {{dev: {null}}}\ntraining: {{save_steps: {null}}}\n")

    assert (config.lora, config.prompts.dev, config.training.save_steps) == (None, None, None)


def test_a_field_whose_default_is_null_may_be_left_empty(tmp_path):
    assert load(tmp_path, "training:\n  output_dir:\n  weight_decay: # the optimizer's\n") == RunConfiguration()


def test_an_unknown_field_is_told_as_such(tmp_path):
    with pytest.raises(ConfigurationError, match=r"training\.learning_rate: unknown field"):
        load(tmp_path, "training:\n  learning_rate:\n")


def test_yaml_s_no_is_a_precision(tmp_path):
    assert load(tmp_path, "training: {mixed_precision: no}\n").training.mixed_precision == "no"
