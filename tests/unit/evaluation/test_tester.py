"""Which tester is evaluated, and that it is one."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model

from astra_accel.config import ModelConfiguration, RunConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.evaluation.tester import find_tester, load_configuration, settings_of, with_tester
from astra_accel.models.loading.tiny import build_tiny, save_tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")

TINY = RunConfiguration(tester=ModelConfiguration(path="tiny"), target=ModelConfiguration(path="tiny"))


@pytest.fixture
def adapter(tmp_path):
    """A run whose tester is an adapter."""
    base, _ = build_tiny("llama")
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "run" / "tester")
    return tmp_path / "run" / "tester"


def test_a_run_or_its_tester(adapter):
    assert find_tester(adapter.parent) == find_tester(adapter) == adapter


def test_an_adapter_goes_on_the_configured_model_beside_the_baseline_of_training(adapter):
    config = with_tester(TINY, adapter)
    assert config.tester == ModelConfiguration(path="tiny", adapter=str(adapter))
    assert config.baseline == ModelConfiguration(path="tiny")
    assert TINY.tester.adapter is None


def test_a_full_tester_is_a_model_of_its_own(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    started_from = TINY.model_copy(update={"tester": ModelConfiguration(path="tiny", adapter="earlier")})
    config = with_tester(started_from, find_tester(folder))
    assert config.tester == ModelConfiguration(path=str(tmp_path))
    assert config.baseline == ModelConfiguration(path="tiny", adapter="earlier")


def test_a_baseline_of_its_own_stays(adapter):
    baseline = ModelConfiguration(path="tiny:gpt2")
    assert with_tester(TINY.model_copy(update={"baseline": baseline}), adapter).baseline == baseline


def test_no_tester_is_an_error(tmp_path, adapter):
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path / 'nowhere'}"):
        find_tester(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no tester: neither"):
        find_tester(tmp_path)
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigurationError, match=f"the weights in {weights} can't be read"):
        find_tester(adapter)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="a tester without weights"):
        find_tester(adapter.parent)


def test_the_configuration_is_the_runs_unless_one_is_given(tmp_path, adapter):
    run = adapter.parent
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml in .*; expected a run, or --config FILE"):
        load_configuration(run, None, [])
    (run / "config.yaml").write_text(TINY.to_yaml())
    assert load_configuration(run, None, ["--rollout.tree_depth", "5"]).rollout.tree_depth == 5
    (tmp_path / "other.yaml").write_text("tester: {path: embedded}")
    assert load_configuration(run, tmp_path / "other.yaml", []).tester.path == "embedded"


def test_settings_know_a_tester_by_its_weights_and_not_by_its_place(tmp_path, adapter):
    before = settings_of(TINY, adapter)
    moved = adapter.rename(tmp_path / "moved")
    assert settings_of(TINY, moved) == before
    weights = moved / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert settings_of(TINY, moved) != before


def test_an_evaluation_is_as_deep_as_it_says_and_else_as_training_is(adapter):
    def settings(rollout, evaluation):
        sections = {"rollout": {"tree_depth": rollout}, "evaluation": {"tree_depth": evaluation}}
        return settings_of(RunConfiguration(**{**TINY.model_dump(include={"tester", "target"}), **sections}), adapter)

    assert settings(1, 3) == settings(3, None)
    assert settings(1, None) != settings(3, None)


def test_settings_are_what_the_conversations_depend_on(adapter):
    before = settings_of(TINY, adapter)
    for section, values in (("training", {"lr": 1.0}), ("evaluation", {"threshold": 0.9, "num_resamples": 7})):
        changed = getattr(TINY, section).model_copy(update=values)
        assert settings_of(TINY.model_copy(update={section: changed}), adapter) == before
    for section, values in (("rollout", {"tree_depth": 9}), ("reward", {"ppl_weight": 9.0})):
        changed = getattr(TINY, section).model_copy(update=values)
        assert settings_of(TINY.model_copy(update={section: changed}), adapter) != before
