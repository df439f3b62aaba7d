"""A whole configuration, from a file and a command line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, CliApp, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from astra_accel.config.endpoints import BudgetConfiguration, TargetConfiguration
from astra_accel.config.fields import section_of
from astra_accel.config.models import ComputeConfiguration, LoRAConfiguration, ModelConfiguration
from astra_accel.config.rollout import (
    AlgorithmConfiguration,
    EvaluationConfiguration,
    PromptsConfiguration,
    RewardConfiguration,
    RolloutConfiguration,
    ScorerConfiguration,
)
from astra_accel.config.training import TrainingConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.overrides import separated
from astra_accel.paths import user_path
from astra_accel.registries import ENDPOINT_SCORERS
from astra_accel.yaml_files import read_yaml, to_yaml

MAPPINGS = ("options", "_kwargs", ".scorers", ".best_bounds", ".stop_at", ".headers", ".extra_body", ".prices")
"""How the names of fields that are mappings end."""


class RunConfiguration(BaseSettings):
    """A whole run, section by section, as in a YAML file."""

    model_config = SettingsConfigDict(
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        cli_exit_on_error=False,
    )

    training: TrainingConfiguration = TrainingConfiguration()
    tester: ModelConfiguration = ModelConfiguration()
    target: TargetConfiguration = TargetConfiguration()
    baseline: ModelConfiguration | None = None
    """The tester's frozen reference policy. None: the tester before training."""
    lora: LoRAConfiguration | None = LoRAConfiguration()
    """The tester's adapter. null (`--lora null` on the command line) trains all weights."""
    rollout: RolloutConfiguration = RolloutConfiguration()
    compute: ComputeConfiguration = ComputeConfiguration()
    reward: RewardConfiguration = RewardConfiguration()
    scorer: ScorerConfiguration = ScorerConfiguration()
    prompts: PromptsConfiguration = PromptsConfiguration()
    algorithm: AlgorithmConfiguration = AlgorithmConfiguration()
    evaluation: EvaluationConfiguration = EvaluationConfiguration()
    budget: BudgetConfiguration | None = None
    """How much endpoints may be asked. None: without limit."""

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        **_: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values only from the file and the command line, never from environment variables."""
        return (init_settings,)

    @field_validator("target", mode="before")
    @classmethod
    def _loaded_target(cls, target: Any) -> Any:
        """A program may give the configuration of a model that is loaded, as for the other roles."""
        return target.model_dump(exclude_unset=True) if type(target) is ModelConfiguration else target

    @model_validator(mode="after")
    def _check_episodes(self) -> RunConfiguration:
        episodes, each = self.training.num_episodes_per_experience, self.rollout.episodes_per_prompt
        if episodes % each:
            raise ValueError(
                f"rollout.episodes_per_prompt is {each}, but training.num_episodes_per_experience is {episodes}; "
                f"expected a multiple of {each}"
            )
        return self

    @model_validator(mode="after")
    def _check_endpoint(self) -> RunConfiguration:
        """Check what an endpoint asks of other sections; naturalness is judged by the baseline, unless said."""
        if self.target.endpoint is None:
            return self
        if self.target.api == "completions" and self.rollout.format == "chat":
            raise ValueError(
                "target.api is 'completions', which takes one running text, but rollout.format is 'chat'; expected "
                "target.api 'chat', or rollout.format 'raw'"
            )
        if "naturalness_model" not in self.reward.model_fields_set:
            self.reward = self.reward.model_copy(update={"naturalness_model": "baseline"})
        elif self.reward.naturalness_model == "target":
            raise ValueError(
                "reward.naturalness_model is 'target', but the target is behind an endpoint, which returns no "
                "log-probs; expected 'baseline'"
            )
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> RunConfiguration:
        if self.budget is None:
            return self
        judge = self.scorer.options.get("model") if self.scorer.name in ENDPOINT_SCORERS else None
        models = [name for name in (self.target.model, judge) if name is not None]
        if not models:
            raise ValueError("budget is set, but neither target nor scorer asks an endpoint; expected null")
        missing = [name for name in models if self.budget.cost is not None and name not in self.budget.prices]
        if missing:
            raise ValueError(f"budget.prices has no price of {missing[0]!r}; expected one for each model that is asked")
        return self

    @property
    def eval_depth(self) -> int:
        """Turns of a conversation in evaluations."""
        return self.evaluation.tree_depth or self.rollout.tree_depth

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfiguration:
        """Read a YAML file and apply overrides (``["--training.lr", "1e-4"]``) to it.

        Raises:
            FileNotFoundError: the file is not there.
            ConfigurationError: it is no YAML mapping, or a field or override is unknown or bad.
        """
        values = {} if path is None else read_yaml(user_path(str(path)), may_be_empty)
        cli_args = separated(overrides)
        _check_mappings(cli_args)
        try:
            return CliApp.run(cls, cli_args=cli_args, **values)
        except ValidationError as error:
            raise ConfigurationError(describe(error, str(path) if path else "the configuration")) from error
        except SettingsError as error:
            raise ConfigurationError(f"command line: {error}") from error

    def to_yaml(self) -> str:
        """The configuration as YAML that :meth:`load` reads back to an equal one."""
        return to_yaml(self)


def may_be_empty(names: Sequence[str]) -> bool:
    """Whether a field that is left empty in a file can only mean its default, which is null.

    Not a section: ``lora:`` over nothing but comments reads as null, and null trains all weights.
    """
    model: type[BaseModel] | None = RunConfiguration
    for place, name in enumerate(names):
        field = None if model is None else model.model_fields.get(name)
        if field is None:
            return model is not None  # an unknown field, which is told as such; or within options
        model = section_of(field.annotation)
        if place == len(names) - 1:
            return model is None and field.default is None
    return False


def _check_mappings(overrides: Sequence[str]) -> None:
    """Find a value of a mapping that pydantic-settings would take for an empty one.

    Raises:
        ConfigurationError: names the field.
    """
    for name, value in pairwise(overrides):
        if name.startswith("--") and name.endswith(MAPPINGS):
            text = value.strip()
            if text in ("", "null") or text.startswith("["):
                raise ConfigurationError(
                    f"command line: {name.removeprefix('--')}: found {value!r}; expected a mapping as JSON, as "
                    f"'{{\"name\": 1}}', or {{}} for none"
                )


def describe(error: ValidationError, where: str) -> str:
    """One line a bad field: its name, what was found and what was expected."""
    lines = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{field}: unknown field")
        elif item["type"] == "value_error":
            lines.append(": ".join(part for part in (field, str(item["ctx"]["error"])) if part))
        else:
            lines.append(f"{field}: found {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}")
    return f"{where}: " + "; ".join(lines) if len(lines) == 1 else f"{where}:\n  " + "\n  ".join(lines)
