"""The configuration as text (``training/config_text.py``)."""

from astra_accel import RunConfiguration
from astra_accel.config import LoRAConfiguration
from astra_accel.training.config_text import changed_fields
from astra_accel.yaml_files import dump_yaml, to_yaml


class TestChangedFields:
    def test_equal_configurations_have_none(self):
        assert changed_fields(RunConfiguration().to_yaml(), RunConfiguration().to_yaml()) == {}

    def test_each_is_named_with_both_values(self):
        before = RunConfiguration(training={"lr": 1e-3, "log_with": ["tensorboard"]}, lora={"r": 4})
        after = RunConfiguration(training={"lr": 1e-05}, lora=None, scorer={"options": {"label": "x"}})

        assert list(changed_fields(before.to_yaml(), after.to_yaml()).values()) == [
            "training.lr: 0.001, now 1e-05",
            "training.log_with: \"['tensorboard']\", now '[]'",
            "lora.r: 4, now None",
            "lora.alpha: 32.0, now None",
            "lora.target_modules: 'all-linear', now None",
            "scorer.options: '{}', now None",
            "lora: None, now 'None'",
            "scorer.options.label: None, now 'x'",
        ]

    def test_fields_that_an_earlier_version_lacked_are_named_unless_they_have_their_defaults(self):
        before = RunConfiguration(lora=None).model_dump(mode="json")
        del before["budget"], before["compute"], before["training"]["mixed_precision"], before["training"]["replay"]
        after = RunConfiguration(lora=LoRAConfiguration(), training={"mixed_precision": "bf16"})

        assert changed_fields(dump_yaml(before), after.to_yaml()).keys() == {
            "training.mixed_precision",
            *("lora", "lora.r", "lora.alpha", "lora.target_modules"),
        }

    def test_texts_that_look_like_numbers_are_told_apart_from_them(self):
        before = RunConfiguration(scorer={"options": {"of": "1e-4"}})
        after = RunConfiguration(scorer={"options": {"of": 1e-4}})

        assert changed_fields(to_yaml(before), to_yaml(after)) == {
            "scorer.options.of": "scorer.options.of: '1e-4', now 0.0001"
        }
