"""How to train: the section `training`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    model_validator,
)

from astra_accel.config.section import Count, Factor, Section
from astra_accel.errors import ConfigurationError
from astra_accel.paths import user_path

Optimizer = Literal["adam", "adamw", "sgd", "rmsprop", "adagrad"]
Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]
Precision = Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)]
"""YAML reads the word no as false."""
NO_WARMUP = ("constant", "reduce_lr_on_plateau")
AUTO = "auto"
"""Instead of a checkpoint to resume from: the newest whole one in the output folder, or the beginning."""


class Bound(Section):
    """Between which multiples of the untrained tester's value a metric has to be."""

    min: Factor | None = None
    """At least this many times the untrained tester's value."""
    max: Factor | None = None
    """At most this many times the untrained tester's value."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"max": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check_ends(self) -> Bound:
        if self.min is None and self.max is None:
            raise ValueError("found no factor; expected a number, or one of min and max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min}, above max = {self.max}; expected min at most max")
        return self


class ReplayConfiguration(Section):
    """Examples of earlier experiences that are trained on again, by an algorithm that may learn from them."""

    size: Count = 512
    """Examples kept at most; at least as many as an update takes."""
    share: float = Field(0.5, gt=0, lt=1)
    """How much of what an experience is trained on comes from the replay, as soon as that holds so much."""
    priority: Literal["return", "recency", "uniform"] = "return"
    """Which are drawn: mostly those that earned most, mostly the newest, or all alike. Of too many, `return` keeps the
    best, the others the newest."""
    max_overlap: float | None = Field(None, ge=0, le=1)
    """Of an example that shares more of its words than this with a better one, only the better one is kept; None keeps
    both."""
    min_fluency: float | None = Field(None, allow_inf_nan=False)
    """An example whose probe has a lower mean log-prob a token under the baseline is not kept; None keeps any."""
    max_draws: Count | None = None
    """Times that an example is drawn at most, so that it is not learned by heart; None is no limit."""
    source: Annotated[Path, AfterValidator(lambda path: user_path(str(path)))] | None = None
    """A run, or a checkpoint of one, with whose examples the replay begins; None begins without. `mle` takes those of
    `tb` too, so that it can go on from what that found."""


class TrainingConfiguration(Section):
    """How the tester is trained. The first six fields are the reference's, with its defaults."""

    lr: float = Field(3e-3, gt=0, allow_inf_nan=False)
    """Learning rate of the optimizer."""
    batch_size: Count = 16
    """Examples of a batch (after flattening an experience), counted over all processes."""
    optimizer: Optimizer = "adamw"
    """adam, adamw, sgd, rmsprop or adagrad, each torch's own with its other settings at their defaults."""
    gradient_accumulation_steps: Count = 1
    """Batches whose gradients are averaged to one update. An update never spans two experiences."""
    training_steps: Count = 1024
    """Turns of the outer loop: collect an experience, then update on it."""
    num_episodes_per_experience: Count = 8
    """Prompts rolled out to trees before the next updates, counted over all processes."""
    stop_at: dict[str, FiniteFloat] | None = None
    """End the run before `training_steps`, after a training step in which a figure of the reward (`reward/mean`,
    `reward/<term>`, as in `metrics.jsonl`) reaches this value. `{reward/combined_score: 0.45}` trains each seed equally
    far, however many steps it takes. Training steps with few-shot examples don't count."""

    weight_decay: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Weight decay; None is the optimizer's own default (0.01 for adamw, else 0)."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Gradients are scaled down to this global L2 norm; None does not clip."""
    lr_scheduler: Scheduler = "constant"
    """A name of transformers' `get_scheduler`. It advances once a training step, over `training_steps`."""
    lr_scheduler_kwargs: dict[str, Any] = {}
    """Further arguments of the scheduler (`min_lr` for cosine_with_min_lr)."""
    warmup_steps: int = Field(0, ge=0)
    """Training steps in which the learning rate rises from 0."""
    epochs_per_experience: Count = 1
    """Passes over the examples of an experience, each in another order."""
    replay: ReplayConfiguration | None = None
    """Train again on examples of earlier experiences; None trains on new ones alone. Not for an algorithm that learns
    on-policy (grpo, rloo, ppo)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Everything random follows from it: prompts, sampled tokens, the order of examples."""
    mixed_precision: Precision | None = None
    """Precision of the tester's forward passes in updates; None leaves it to `accelerate launch`."""

    output_dir: Annotated[Path, AfterValidator(lambda path: user_path(str(path)))] | None = None
    """Where the run writes its files; None makes a new folder `runs/<date>-<time>`."""
    overwrite_output_dir: bool = False
    """Delete the run that `output_dir` holds, instead of stopping with an error."""
    save_steps: Count | None = 100
    """Training steps between checkpoints (the last step has one too); None saves the best alone, and at a signal."""
    save_total_limit: Count | None = 2
    """Checkpoints to keep, the best one aside; None keeps all."""
    stop_if_unsaved: bool = True
    """Whether a checkpoint that can't be written (a full disk) ends the run; else that is told, and the run goes on."""
    async_save: bool = False
    """Write checkpoints while training goes on, from a copy of the state in memory of the host (weights and optimizer
    state once more); else training waits for the disk."""
    eval_steps: Count | None = None
    """Training steps between evaluations on held-out prompts; None evaluates none."""
    num_eval_episodes: Count = 32
    """Episodes of an evaluation."""
    best_metric: str = "reward/mean"
    """The evaluation metric by which the best checkpoint is kept; higher is better. `attack_success` counts an episode
    that missing scores leave open as no success."""
    best_bounds: dict[str, Bound] | None = None
    """Within which an evaluation has to be to count as the best, and as better for early stopping: by metric, a factor
    of the untrained tester's value on the same prompts. A number is how many times that at most; `{min: 0.8}` says at
    least, `{min: 0.8, max: 1.3}` both. `{probe_perplexity/median: 1.3, self_bleu: 1.3}` keeps probes as natural and as
    different as they were. The run then evaluates the untrained tester first."""
    load_best_at_end: bool = True
    """Where evaluations chose a best checkpoint, `tester/` gets its weights rather than the last."""
    push_to_hub: bool = False
    """Upload the trained tester to `hub_model_id` at the end. Whether one may is found out before anything loads."""
    hub_model_id: str | None = None
    """Where to on the Hugging Face hub: `owner/name`, or `name` in one's own namespace."""
    hub_private: bool = True
    """Make a new repository private; one that is public already is then refused."""
    log_with: list[str] = []
    """Trackers of Accelerate: tensorboard, wandb, trackio, mlflow, …"""
    sample_steps: Count | None = 10
    """Training steps between sample conversations on the screen; None shows none."""
    num_sample_conversations: int = Field(2, ge=0)
    """Conversations shown each time."""
    allow_changed_prompts: bool = False
    """Go on from a checkpoint though a file or data set of prompts holds others than when it was written."""
    timeout: float = Field(600.0, gt=0, allow_inf_nan=False)
    """Seconds that a process waits for the others before the run ends with an error; at least as much longer as the
    slowest of them takes for its part of a rollout or an evaluation than the quickest."""
    max_empty_experiences: Count = 10
    """Experiences in a row that may yield no training example before the run stops with an error."""

    @model_validator(mode="after")
    def _check_hub(self) -> TrainingConfiguration:
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub is true, but hub_model_id is null; expected where to: owner/name")
        if self.hub_model_id is not None:
            check_repository(self.hub_model_id, "hub_model_id")
        return self

    @model_validator(mode="after")
    def _check_bounds(self) -> TrainingConfiguration:
        if self.best_bounds and self.eval_steps is None:
            raise ValueError("best_bounds is set, but eval_steps is null, so nothing is evaluated; expected a number")
        return self

    @model_validator(mode="after")
    def _check_replay(self) -> TrainingConfiguration:
        of_update = self.batch_size * self.gradient_accumulation_steps
        if self.replay is not None and self.replay.size < of_update:
            raise ValueError(
                f"replay.size is {self.replay.size}, but an update takes {of_update} examples (batch_size x "
                f"gradient_accumulation_steps); expected at least {of_update}"
            )
        return self

    @model_validator(mode="after")
    def _check_warmup(self) -> TrainingConfiguration:
        if self.warmup_steps and self.lr_scheduler in NO_WARMUP:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but lr_scheduler {self.lr_scheduler!r} has no warm-up; "
                f"expected 0, or another scheduler (constant_with_warmup, linear, cosine, …)"
            )
        if self.warmup_steps > self.training_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, expected at most training_steps = {self.training_steps}"
            )
        return self

    @property
    def watched_metrics(self) -> list[str]:
        """The metrics that choose the best checkpoint."""
        return [self.best_metric, *(self.best_bounds or {})]


def check_repository(name: str, field: str) -> None:
    """Find a name that no repository of the Hugging Face hub can have.

    Raises:
        ConfigurationError: it is none; names the field.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigurationError(f"{field} is {name!r}, expected owner/name: {error}") from error


def check_resume(config: TrainingConfiguration, resume: str | Path | None) -> None:
    """Find a resume that has nowhere to look.

    Raises:
        ConfigurationError: it is ``auto``, and no output folder is named.
    """
    if resume == AUTO and config.output_dir is None:
        raise ConfigurationError(
            "resume is 'auto', which looks for checkpoints in training.output_dir, but that is null, a new folder each "
            "time; expected a folder (--training.output_dir DIR)"
        )
