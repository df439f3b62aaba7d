import inspect

import pytest
import yaml

from astra_accel.algorithms import ALGORITHMS, build_algorithm
from astra_accel.cli import main
from astra_accel.commands.starter import USUAL, starter
from astra_accel.config import RunConfiguration
from astra_accel.config.fields import all_fields
from astra_accel.lazy import load


def written(folder, *arguments):
    path = folder / "run.yaml"
    assert main(["init", str(path), *arguments]) == 0
    return path


def fields_of(values, prefix=""):
    """Dotted names of what a YAML mapping sets, as far as it is written out."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from fields_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("full", [(), ("--full",)])
def test_the_file_is_the_defaults_that_it_claims(tmp_path, full):
    assert RunConfiguration.load(written(tmp_path, *full)) == RunConfiguration()


def test_the_usual_file_sets_the_usual_fields_and_the_full_one_all(tmp_path):
    usual = yaml.safe_load(written(tmp_path).read_text())
    full = yaml.safe_load(written(tmp_path, "--full", "--overwrite").read_text())
    every = {name for name, _, _ in all_fields(RunConfiguration)}

    assert list(fields_of(usual)) == list(USUAL)
    # A baseline, a replay or examples that are none are written out in comments alone.
    none = ("baseline", "training.replay", "training.curriculum", "rollout.few_shot", "evaluation.benign", "budget")
    assert set(fields_of(full)) == {name for name in every if name.rpartition(".")[0] not in none} | set(none)


def test_each_field_comes_with_what_it_means_and_may_be(tmp_path):
    usual = written(tmp_path).read_text().splitlines()
    lines = written(tmp_path, "--full", "--overwrite").read_text().splitlines()
    text = " ".join(line.strip().lstrip("# ") for line in lines)

    for _, description, choices in all_fields(RunConfiguration):
        assert description.replace("None", "null") in text
        assert not choices or f"One of {', '.join(choices)}." in text or all(one in description for one in choices)
    assert max(map(len, [*usual, *lines])) <= 120


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_options_of_an_algorithm_are_those_of_its_class(tmp_path, algorithm):
    path = written(tmp_path, "--algorithm", algorithm)
    expected = RunConfiguration.load(overrides=["--algorithm.name", algorithm])
    lines = path.read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if f"# Of {algorithm}, with their defaults:" in line) + 1
    end = next(number for number, line in enumerate(lines) if number > begin and "options:" in line)
    options = yaml.safe_load("\n".join(line.replace("#", " ", 1) for line in lines[begin:end]))
    parameters = inspect.signature(load(ALGORITHMS[algorithm])).parameters

    assert RunConfiguration.load(path) == expected
    assert options == {name: one.default for name, one in parameters.items() if name != "system"}
    build_algorithm(algorithm, None, **options)


def test_models_are_those_asked_for_and_the_target_is_the_testers_unless_told(tmp_path):
    one = RunConfiguration.load(written(tmp_path, "--model", "some/model"))
    other = RunConfiguration.load(written(tmp_path, "--target", "yes", "--overwrite"))

    assert (one.tester.path, one.target.path) == ("some/model", "some/model")
    assert (other.tester.path, other.target.path) == ("embedded", "yes")  # a word that YAML takes for true


def test_a_file_that_is_there_is_left_alone(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("mine")

    assert main(["init", str(path)]) == 2
    assert path.read_text() == "mine"
    assert f"{path} already exists; expected another name, or --overwrite" in capsys.readouterr().err
    assert main(["init", str(path), "--overwrite"]) == 0
    assert path.read_text() == starter(RunConfiguration(), full=False)


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["init", str(tmp_path / "no" / "run.yaml")]) == 2
    assert "no/run.yaml can't be written" in capsys.readouterr().err


def test_a_dash_is_the_screen(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["init", "-"]) == 0
    assert capsys.readouterr().out == starter(RunConfiguration(), full=False)
    assert list(tmp_path.iterdir()) == []
