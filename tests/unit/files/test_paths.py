from pathlib import Path

import pytest

from astra_accel.config import RunConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.paths import expanded, user_path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_home_folder_is_meant_at_the_beginning_alone(home):
    assert user_path("~/a/~/b") == home / "a" / "~" / "b"
    assert user_path("a/~") == Path("a/~")
    assert expanded("meta-llama/Llama~2") == "meta-llama/Llama~2"


def test_nobody_s_home_is_refused():
    with pytest.raises(ValueError, match=r"there is no home folder ~nonesuch; expected another path \(\./~nonesuch/x"):
        user_path("~nonesuch/x")


def test_every_path_of_a_configuration_may_begin_with_it(home):
    config = RunConfiguration(
        training={"output_dir": "~/runs/a"},
        tester={"path": "~/model", "adapter": "~/adapter"},
        prompts={"train": {"source": "~/p.txt"}},
        reward={"embedding_model": "~/e"},
        evaluation={"embedding_model": "~/f"},
        scorer={"name": "classifier", "options": {"model": "~/judge"}},
    )

    assert config.training.output_dir == home / "runs" / "a"
    assert (config.tester.path, config.tester.adapter) == (f"{home}/model", f"{home}/adapter")
    assert config.prompts.train.source == f"{home}/p.txt"
    assert (config.reward.embedding_model, config.evaluation.embedding_model) == (f"{home}/e", f"{home}/f")
    assert config.scorer.options == {"model": f"{home}/judge"}
    assert RunConfiguration.load(overrides=["--training.output_dir", "~/x"]).training.output_dir == home / "x"
    with pytest.raises(ConfigurationError, match=r"training\.output_dir: found '~nonesuch/x'"):
        RunConfiguration.load(overrides=["--training.output_dir", "~nonesuch/x"])
    (home / "run.yaml").write_text("training: {lr: 0.5}\n")
    assert RunConfiguration.load("~/run.yaml").training.lr == 0.5
