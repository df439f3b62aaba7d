import pytest

from astra_accel.config import RunConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.overrides import joined, separated


def load(*overrides):
    return RunConfiguration.load(overrides=list(overrides))


@pytest.mark.parametrize("value", ["-1e-3", "-1E-3", "-.5", "-1", "-1.e3", "1e-3", "+2"])
@pytest.mark.parametrize("form", ["two arguments", "one"])
def test_a_number_is_read_however_it_is_written(value, form):
    name = "--reward.length_weight"

    config = load(name, value) if form == "two arguments" else load(f"{name}={value}")

    assert config.reward.length_weight == float(value)


@pytest.mark.parametrize(
    "text",
    [
        "[INST] be nice",
        "[INST] be nice [/INST]",
        '{"a": 1}',
        "[1, 2]",
        '"quoted"',
        "-be brief",
        "--- be brief",
        "a,b",
        "several\nlines",
        "a=b",
        "",
        "true",
    ],
)
@pytest.mark.parametrize("form", ["two arguments", "one"])
def test_a_text_is_read_as_it_is(text, form):
    name = "--rollout.target_instruction"

    found = load("--rollout.format", "chat", *([name, text] if form == "two arguments" else [f"{name}={text}"]))

    assert found.rollout.target_instruction == text


def test_what_can_t_be_read_whole_is_refused():
    with pytest.raises(ConfigurationError, match=r"rollout\.target_instruction has a value of several lines"):
        load("--rollout.format", "chat", "--rollout.target_instruction", "-a\nb")


@pytest.mark.parametrize("value", ["null", "", "[]", '["beta"]'])
def test_no_mapping_is_no_empty_mapping(value):
    with pytest.raises(ConfigurationError, match=r"algorithm\.options: found '.*'; expected a mapping as JSON"):
        load("--algorithm.options", value)


def test_a_word_is_no_list_of_it():
    assert load("--lora.target_modules", "all-linear").lora.target_modules == "all-linear"
    assert load("--lora.target_modules", "q_proj").lora.target_modules == ["q_proj"]


def test_an_option_is_no_value():
    assert joined(["--a.b", "--c.d", "1", "run", "--e", "2"]) == ["--a.b", "--c.d=1", "run", "--e", "2"]
    assert separated(["--a.b", "-1", "--c.d=2", "--e"]) == ["--a.b=-1", "--c.d", "2", "--e"]


def test_a_command_takes_a_field_s_value_for_no_argument_of_its_own(capsys):
    from astra_accel.cli import main

    assert main(["evaluate", "--evaluation.threshold", "0.8", "nowhere"]) == 2
    assert "no folder nowhere" in capsys.readouterr().err
