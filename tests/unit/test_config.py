import json
import math
from pathlib import Path
from typing import get_args

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from pydantic import BaseModel, ValidationError
from transformers.trainer_utils import SchedulerType

from astra_accel import config as config_module
from astra_accel.algorithms import ALGORITHMS
from astra_accel.config import (
    NO_WARMUP,
    LoRAConfiguration,
    ModelConfiguration,
    Named,
    RewardConfiguration,
    RolloutConfiguration,
    RunConfiguration,
    Scheduler,
    Section,
    TrainingConfiguration,
)
from astra_accel.errors import ConfigurationError
from astra_accel.yaml_files import to_yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
LAUNCHES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
SECTIONS = [
    section
    for section in vars(config_module).values()
    if isinstance(section, type) and issubclass(section, Section) and section not in (Section, Named)
]


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def load(*overrides, path=None):
    return RunConfiguration.load(path, overrides)


class TestTrainingConfiguration:
    def test_nothing_is_uploaded_and_all_is_private_unless_told_otherwise(self):
        config = TrainingConfiguration()
        assert (config.push_to_hub, config.hub_model_id, config.hub_private) == (False, None, True)
        assert load("--training.push_to_hub", "true", "--training.hub_model_id", "me/tester").training.push_to_hub

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (("--training.push_to_hub", "true"), "push_to_hub is true, but hub_model_id is null; expected where to"),
            (("--training.hub_model_id", "a/b/c"), "hub_model_id is 'a/b/c', expected owner/name"),
            (("--training.hub_model_id", "my--tester"), "hub_model_id is 'my--tester', expected owner/name"),
        ],
    )
    def test_an_upload_that_can_not_be_is_refused(self, overrides, message):
        with pytest.raises(ConfigurationError, match=message):
            load(*overrides)

    def test_the_first_six_fields_and_defaults_are_those_of_the_reference(self):
        assert list(TrainingConfiguration().model_dump().items())[:6] == [
            ("lr", 3e-3),
            ("batch_size", 16),
            ("optimizer", "adamw"),
            ("gradient_accumulation_steps", 1),
            ("training_steps", 1024),
            ("num_episodes_per_experience", 8),
        ]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("lr", -1),
            ("lr", 0),
            ("lr", math.nan),
            ("lr", math.inf),
            ("lr", "fast"),
            ("batch_size", 0),
            ("batch_size", 1.5),
            ("optimizer", "adamww"),
            ("gradient_accumulation_steps", 0),
            ("training_steps", 0),
            ("num_episodes_per_experience", 0),
            ("weight_decay", -0.1),
            ("max_grad_norm", 0),
            ("max_grad_norm", math.nan),
            ("lr_scheduler", "cosin"),
            ("warmup_steps", -1),
            ("epochs_per_experience", 0),
            ("seed", -1),
            ("seed", 2**63),
            ("mixed_precision", "fp8"),
            ("save_steps", 0),
            ("save_total_limit", 0),
            ("eval_steps", 0),
            ("num_eval_episodes", 0),
            ("max_empty_experiences", 0),
            ("batchsize", 4),
        ],
    )
    def test_a_bad_value_or_name_is_a_value_error_that_names_the_field(self, field, value):
        with pytest.raises(ValueError, match=rf"(?m)^{field}$"):
            TrainingConfiguration(**{field: value})

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("size", 0),
            ("share", 0),
            ("share", 1),
            ("share", -0.5),
            ("share", 1.5),
            ("share", math.nan),
            ("priority", "reward"),
            ("max_overlap", 1.1),
            ("max_overlap", -0.1),
            ("min_fluency", math.inf),
            ("max_draws", 0),
        ],
    )
    def test_a_replay_with_a_bad_value_is_refused_by_its_field(self, field, value):
        with pytest.raises(ValueError, match=rf"(?m)^replay\.{field}$"):
            TrainingConfiguration(replay={field: value})

    def test_a_replay_holds_at_least_what_an_update_takes(self):
        message = r"training: replay\.size is 31, but an update takes 32 examples .*expected at least 32"
        options = ("--training.batch_size", "8", "--training.gradient_accumulation_steps", "4")
        with pytest.raises(ConfigurationError, match=message):
            load(*options, "--training.replay.size", "31")
        assert load(*options, "--training.replay.size", "32").training.replay.size == 32

    def test_there_is_no_replay_unless_told_and_a_command_line_takes_it_back(self, write):
        path = write("training:\n  replay: {share: 0.25}\n")
        assert load().training.replay is None
        assert load(path=path).training.replay.share == 0.25
        assert load("--training.replay", "null", path=path).training.replay is None

    @pytest.mark.parametrize("scheduler", NO_WARMUP)
    def test_a_warm_up_needs_a_scheduler_that_has_one(self, scheduler):
        with pytest.raises(ValueError, match=f"warmup_steps is 3, but lr_scheduler '{scheduler}' has no warm-up"):
            TrainingConfiguration(lr_scheduler=scheduler, warmup_steps=3)

    def test_a_warm_up_fits_into_the_run(self):
        TrainingConfiguration(lr_scheduler="linear", warmup_steps=5, training_steps=5)
        with pytest.raises(ValueError, match="warmup_steps is 6, expected at most training_steps = 5"):
            TrainingConfiguration(lr_scheduler="linear", warmup_steps=6, training_steps=5)

    def test_a_bound_is_at_most_a_number_or_between_two(self):
        bounds = '{"a/b": 1.3, "c": {"min": 0.5}, "d": {"min": 0.5, "max": 2}}'
        config = load("--training.eval_steps", "2", "--training.best_bounds", bounds)
        found = {name: (bound.min, bound.max) for name, bound in config.training.best_bounds.items()}
        assert found == {"a/b": (None, 1.3), "c": (0.5, None), "d": (0.5, 2.0)}
        assert RunConfiguration(**yaml.safe_load(config.to_yaml())) == config
        assert config.training.watched_metrics == ["reward/mean", "a/b", "c", "d"]
        assert load("--training.best_bounds", "{}").training.watched_metrics == ["reward/mean"]

    @pytest.mark.parametrize(
        ("bounds", "named"),
        [
            ('{"a": 0}', r"training\.best_bounds\.a\.max: found 0; input should be greater than 0"),
            ('{"a": {"min": -1}}', r"training\.best_bounds\.a\.min: found -1; input should be greater than 0"),
            ('{"a": {}}', r"training\.best_bounds\.a: found no factor; expected a number"),
            ('{"a": {"min": 2, "max": 1}}', r"training\.best_bounds\.a: min is 2\.0, above max = 1\.0"),
            ('{"a": {"maximum": 2}}', r"training\.best_bounds\.a\.maximum: unknown field"),
            ('{"a": "much"}', r"training\.best_bounds\.a: found 'much'"),
            ("null", r"training\.best_bounds: found 'null'; expected a mapping as JSON, .* or \{\} for none"),
            ('{"a": true}', r"training\.best_bounds\.a: found True"),
        ],
    )
    def test_a_bad_bound_is_named(self, bounds, named):
        with pytest.raises(ConfigurationError, match=named):
            load("--training.eval_steps", "2", "--training.best_bounds", bounds)

    def test_bounds_need_evaluations(self):
        with pytest.raises(ValueError, match="best_bounds is set, but eval_steps is null"):
            TrainingConfiguration(best_bounds={"a": 1.3})

    def test_the_schedulers_are_those_of_transformers_but_greedy(self):
        # A greedy schedule is stepped with the loss of each update; ours advance once a training step, which may have
        # several updates or none.
        assert set(get_args(Scheduler)) == {kind.value for kind in SchedulerType} - {"greedy"}


class TestSections:
    @pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
    def test_every_field_is_described(self, section):
        assert section.__doc__
        assert [name for name, field in section.model_fields.items() if not field.description] == []

    def test_every_section_of_a_run_is_described(self):
        for name, field in RunConfiguration.model_fields.items():
            assert field.description or field.annotation.__doc__, name

    def test_every_section_is_part_of_a_run(self):
        found, pending = set(), [RunConfiguration]
        while pending:
            section = pending.pop()
            found.add(section)
            for field in section.model_fields.values():
                kinds = [field.annotation]
                for kind in kinds:
                    kinds += get_args(kind)
                pending += [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]

        assert found == {RunConfiguration, *SECTIONS}

    @pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
    def test_an_unknown_field_is_an_error(self, section):
        with pytest.raises(ValidationError, match="surprise"):
            section(surprise=1)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("packing", "tree"),
            ("token_budget", 0),
            ("token_budget", "many"),
            ("activation_checkpointing", "some"),
            ("merge_adapter", 2),
            ("merge_adapters", True),
        ],
    )
    def test_a_bad_way_to_run_the_models_is_named(self, field, value):
        with pytest.raises(ConfigurationError, match=rf"compute\.{field}\b"):
            load(f"--compute.{field}", str(value))
        with pytest.raises(ValidationError, match=rf"(?m)^compute\.{field}$"):
            RunConfiguration(compute={field: value})

    def test_instructions_need_the_chat_format(self):
        RolloutConfiguration(format="chat", target_instruction="Be kind.")
        with pytest.raises(ValueError, match="target_instruction is set, but format is 'raw'"):
            RolloutConfiguration(target_instruction="Be kind.")

    def test_a_weight_of_a_term_that_is_not_there(self):
        with pytest.raises(
            ValueError, match=r"found toxicity_weight, but there is no such term; expected one of ppl_w"
        ):
            RunConfiguration(reward={"toxicity_weight": 1.0})

    @pytest.mark.parametrize("name", [name for name in RewardConfiguration.model_fields if name.endswith("_weight")])
    @pytest.mark.parametrize("weight", [math.nan, math.inf])
    def test_a_weight_is_a_finite_number(self, name, weight):
        with pytest.raises(ValueError, match=rf"reward\.{name}"):
            RunConfiguration(reward={name: weight})

    def test_episodes_of_one_prompt_make_up_an_experience(self):
        RunConfiguration(rollout={"episodes_per_prompt": 4}, training={"num_episodes_per_experience": 8})
        with pytest.raises(
            ValueError, match=r"rollout\.episodes_per_prompt is 3, but .* is 8; expected a multiple of 3"
        ):
            RunConfiguration(rollout={"episodes_per_prompt": 3}, training={"num_episodes_per_experience": 8})

    @pytest.mark.parametrize(("section", "known"), [("scorer", "profanity"), ("algorithm", "dpo")])
    def test_names_of_registries_are_checked(self, section, known):
        with pytest.raises(ValueError, match=f"unknown {section} 'nonesuch'; expected one of .*{known}"):
            RunConfiguration(**{section: {"name": "nonesuch"}})


class TestYaml:
    def test_the_defaults_come_back_equal(self, write):
        config = RunConfiguration()

        assert load(path=write(config.to_yaml())) == config

    def test_a_configuration_far_from_the_defaults_comes_back_equal(self, write):
        config = RunConfiguration(
            training={"lr": 1e-05, "output_dir": "runs/ü x", "log_with": ["tensorboard"], "max_grad_norm": 1e9},
            tester=ModelConfiguration(path="tiny", revision="no"),
            baseline={"path": "tiny"},
            lora=None,
            rollout={"format": "chat", "tester_instruction": "a: b\n- 'c' \"d\" #e \u2028 \U0001f600"},
            scorer={"name": "classifier", "options": {"label": "x", "weights": [1e-4, 2], "deep": {"a": None}}},
            prompts={"dev": None, "train": {"source": "data.jsonl", "split": "train[:90%]"}},
        )

        assert load(path=write(config.to_yaml())) == config

    @pytest.mark.parametrize(
        "text", ["1234e56", "1e-4", ".5", "5.", "12", "0x10", "1_000", "on", "null", "", "~", "1:30", "2024-01-01"]
    )
    def test_texts_that_look_like_something_else_stay_texts(self, write, text):
        config = RunConfiguration(tester={"revision": text}, scorer={"options": {"of": text}})

        assert load(path=write(config.to_yaml())) == config

    def test_the_order_is_that_of_the_fields(self):
        assert list(yaml.safe_load(RunConfiguration().to_yaml())) == list(RunConfiguration.model_fields)
        assert to_yaml(LoRAConfiguration()) == "r: 16\nalpha: 32.0\ntarget_modules: all-linear\n"

    @pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.e-4", "+1e-4", ".0001", "1.0e-4", "0.0001"])
    def test_numbers_with_an_exponent_are_floats_also_inside_options(self, write, number):
        config = load(path=write(f"training: {{lr: {number}}}\nscorer: {{options: {{at: [{number}]}}}}"))

        assert config.training.lr == 1e-4
        assert config.scorer.options == {"at": [1e-4]}

    def test_whole_numbers_stay_whole(self, write):
        value = load(path=write("scorer: {options: {n: 12, text: 12a, range: 1-4}}")).scorer.options

        assert json.dumps(value) == '{"n": 12, "text": "12a", "range": "1-4"}'

    def test_an_empty_file_is_the_defaults(self, write):
        assert load(path=write("# nothing yet\n")) == RunConfiguration()

    @pytest.mark.parametrize("override", [[], ["--lora.r", "2"]])
    def test_several_mistakes_are_all_named(self, write, override):
        path = write(
            "training: {lr: -1, learning_rate: 3}\nrollout: {tester: {top_q: 1}}\nmodel: {}\n"
            "algorithm: {name: dppo}\nscorer: {options: 3}"
        )

        with pytest.raises(ConfigurationError) as caught:
            load(*override, path=path)

        head, *lines = str(caught.value).splitlines()
        assert head == f"{path}:"
        assert {line.strip().partition(": ")[0]: line.partition(": ")[2] for line in lines} == {
            "training.lr": "found -1; input should be greater than 0",
            "training.learning_rate": "unknown field",
            "rollout.tester.top_q": "unknown field",
            "algorithm.name": f"unknown algorithm 'dppo'; expected one of {', '.join(ALGORITHMS)}",
            "scorer.options": "found 3; input should be a valid dictionary",
            "model": "unknown field",
        }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- training\n", "expected sections .*, found list"),
            ("training", "expected sections .*, found str"),
            ("training: [", "not valid YAML"),
            ("training: *other", "not valid YAML"),
            ("training: 3", "training: found 3"),
            ("1: {lr: 3}", "1: unknown field"),
            ("training: {1: 3}", "training.1: found 1"),
            ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ],
    )
    def test_what_is_no_configuration_says_so(self, write, text, message):
        with pytest.raises(ConfigurationError, match=f"run.yaml.*{message}"):
            load(path=write(text))

    def test_a_file_in_another_encoding_says_so(self, tmp_path):
        (tmp_path / "run.yaml").write_bytes("training: {lr: 1e-4}  # größer".encode("latin-1"))

        with pytest.raises(ConfigurationError, match=r"run\.yaml is not valid YAML"):
            load(path=tmp_path / "run.yaml")

    @pytest.mark.parametrize("text", ["training: {lr: 1, seed: 2, lr: 3}", "training: {}\nlora: {}\ntraining: {lr: 1}"])
    def test_a_name_that_is_given_twice_is_named(self, tmp_path, text):
        (tmp_path / "run.yaml").write_text(text)

        with pytest.raises(ConfigurationError, match=r"'(lr|training)' is given twice"):
            load(path=tmp_path / "run.yaml")

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no configuration file at .*absent\.yaml"):
            load(path=tmp_path / "absent.yaml")


class TestOverrides:
    def test_the_command_line_wins_over_the_file_field_by_field(self, write):
        path = write(
            "training: {lr: 1e-2, batch_size: 4}\nrollout: {tree_width: 3, tester: {max_new_tokens: 9, top_k: 5}}"
        )

        config = load("--training.lr", "1e-4", "--rollout.tester.max_new_tokens", "5", path=path)

        assert (config.training.lr, config.training.batch_size) == (1e-4, 4)
        assert (config.rollout.tree_width, config.rollout.target.max_new_tokens) == (3, 32)
        assert (config.rollout.tester.max_new_tokens, config.rollout.tester.top_k) == (5, 5)

    @pytest.mark.parametrize("spelling", [["--lora", "null"], ["--lora=null"]])
    @pytest.mark.parametrize("text", ["", "lora: {r: 4}"])
    def test_null_turns_lora_off(self, write, text, spelling):
        assert load(*spelling, path=write(text)).lora is None

    def test_null_is_what_the_description_of_lora_says(self):
        assert "--lora null" in RunConfiguration.model_fields["lora"].description

    def test_a_field_turns_on_what_the_file_turned_off(self, write):
        assert load("--lora.r", "4", path=write("lora: null")).lora == LoRAConfiguration(r=4)

    @pytest.mark.parametrize(
        ("override", "field", "value"),
        [
            (["--scorer.options", '{"label": "x", "at": 1e-1}'], "scorer.options", {"label": "x", "at": 0.1}),
            (["--training.log_with", "tensorboard"], "training.log_with", ["tensorboard"]),
            (["--training.log_with", '["tensorboard", "wandb"]'], "training.log_with", ["tensorboard", "wandb"]),
            (["--training.overwrite_output_dir", "true"], "training.overwrite_output_dir", True),
            (["--training.load_best_at_end=false"], "training.load_best_at_end", False),
            (["--training.save_steps", "null"], "training.save_steps", None),
            (["--training.output_dir", "7"], "training.output_dir", Path("7")),
            (["--prompts.dev", "null"], "prompts.dev", None),
            (["--prompts.train.split", "train[:10%]"], "prompts.train.split", "train[:10%]"),
            (["--baseline.path", "tiny"], "baseline", ModelConfiguration(path="tiny")),
            (["--training.lr", "1", "--training.lr", "2"], "training.lr", 2.0),
        ],
    )  # fmt: skip
    def test_every_kind_of_field_can_be_set(self, override, field, value):
        found = load(*override)
        for name in field.split("."):
            found = getattr(found, name)

        assert found == value

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            (["--training.learning_rate", "1"], r"--training\.learning_rate"),
            (["--training.batch", "4"], r"--training\.batch"),
            (["--model.path", "x", "--training.lrr", "1"], r"--model\.path x --training\.lrr 1"),
            (["stray"], "stray"),
            (["--training.lr"], r"--training\.lr: expected one argument"),
            (["--training.overwrite_output_dir", "maybe"], r"training\.overwrite_output_dir: found 'maybe'"),
            (["--training.lr", "fast"], r"training\.lr: found 'fast'"),
            (["--training.lr=-1"], r"training\.lr: found '-1'"),
            (["--scorer.options", "x"], r"scorer\.options"),
            (["--rollout.tree_width", "0"], r"rollout\.tree_width: found '0'"),
            (["--lora", "off"], "lora: found 'off'"),
        ],
    )
    def test_a_bad_override_is_named(self, override, message):
        with pytest.raises(ConfigurationError, match=message):
            load(*override)

    def test_several_bad_values_are_all_named(self):
        with pytest.raises(ConfigurationError) as caught:
            load("--training.lr", "-1", "--rollout.target.top_p", "2")

        assert "training.lr: found '-1'" in str(caught.value)
        assert "rollout.target.top_p: found '2'" in str(caught.value)

    def test_environment_variables_and_dotenv_files_do_not_count(self, monkeypatch, tmp_path):
        values = {"TRAINING": '{"lr": 9}', "TRAINING__LR": "9", "LR": "9", "LORA": "null", "PATH_": "x"}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
            monkeypatch.setenv(name.lower(), value)
        (tmp_path / ".env").write_text('TRAINING={"lr": 9}\n')
        monkeypatch.chdir(tmp_path)

        assert load() == load("--training.lr", "3e-3") == RunConfiguration()
        assert load().training.lr == 3e-3


class TestShippedFiles:
    def test_there_are_some(self):
        assert EXAMPLES
        assert {path.stem for path in LAUNCHES} >= {"cpu_1", "cpu_2", "single_gpu", "multi_gpu", "multi_node"}

    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
    def test_example_configurations_load_and_come_back_equal(self, path, write):
        config = load(path=path)

        assert config != RunConfiguration()
        assert load(path=write(config.to_yaml())) == config

    @pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.name)
    def test_accelerate_reads_its_configurations(self, path):
        assert load_config_from_file(str(path)).num_processes >= 1

    @pytest.mark.parametrize(
        "path", [path for path in LAUNCHES if path.stem.startswith("cpu")], ids=lambda path: path.name
    )
    def test_cpu_launches_set_their_threads(self, path, monkeypatch):
        # Without a setting of theirs the launcher would take OMP_NUM_THREADS, or one thread.
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])

        arguments, defaults, _ = _validate_launch_command(arguments)

        assert defaults.use_cpu
        assert arguments.num_processes == int(path.stem.removeprefix("cpu_"))
        assert arguments.num_cpu_threads_per_process == defaults.mpirun_config["num_cpu_threads_per_process"]


def test_rows_of_a_batch_are_more_on_a_cpu_unless_they_are_given():
    assert (RolloutConfiguration().rows_on("cpu"), RolloutConfiguration().rows_on("cuda")) == (256, 64)
    assert (RolloutConfiguration(batch_rows=7).rows_on("cpu"), RolloutConfiguration(batch_rows=7).rows_on("cuda")) == (
        7,
        7,
    )
