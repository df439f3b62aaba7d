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
Precision = Annotated[
    Literal["auto", "no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)
]
"""YAML reads the word no as false."""
NO_WARMUP = ("constant", "reduce_lr_on_plateau")
AUTO = "auto"
"""Instead of a checkpoint to resume from: the newest whole one in the output folder, or the beginning."""


class Bound(Section):
    """Multiples of the untrained tester's value between which a metric has to be."""

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
    """Train again on examples of earlier experiences, with an algorithm that can learn from them."""

    size: Count = 512
    """Examples to store at most; at least as many as an update takes."""
    share: float = Field(0.5, gt=0, lt=1)
    """Share of the examples of an experience that come from the replay, once it holds enough."""
    priority: Literal["return", "recency", "uniform"] = "return"
    """Which examples to draw: mostly those with the highest return, mostly the newest, or all equally. A full replay
    keeps the best with `return`, otherwise the newest."""
    max_overlap: float | None = Field(None, ge=0, le=1)
    """Largest share of words that two stored examples may have in common; only the better one is kept. None: no
    limit."""
    min_fluency: float | None = Field(None, allow_inf_nan=False)
    """Lowest mean log-prob a token, under the baseline, of a stored example's probe. None: no limit."""
    max_draws: Count | None = None
    """How often an example is drawn at most, so that it is not learned by heart. None: no limit."""
    source: Annotated[Path, AfterValidator(lambda path: user_path(str(path)))] | None = None
    """A run, or a checkpoint of one, whose examples the replay starts with. None: it starts empty. `mle` also takes
    those of `tb`."""


class CurriculumConfiguration(Section):
    """Roll prompts out again whose probes fared differently."""

    share: float = Field(0.25, gt=0, lt=1)
    """Share of the prompts of an experience that are rolled out again, once enough are known."""
    size: Count = 256
    """Prompts to know at most; those with the widest spread stay."""
    figure: str = "reward"
    """What has to differ among probes after the same conversation: `reward`, or a term of it (`combined_score`)."""


class TrainingConfiguration(Section):
    """How the tester is trained. The first six fields are the reference's, with its defaults."""

    lr: float = Field(3e-3, gt=0, allow_inf_nan=False)
    """Learning rate of the optimizer."""
    batch_size: Count = 16
    """Examples a batch, over all processes."""
    optimizer: Optimizer = "adamw"
    """torch's optimizer of that name: adam, adamw, sgd, rmsprop or adagrad, otherwise with its defaults."""
    gradient_accumulation_steps: Count = 1
    """Batches an update. An update never spans two experiences."""
    training_steps: Count = 1024
    """Steps of the outer loop: collect an experience, then update on it."""
    num_episodes_per_experience: Count = 8
    """Episodes (prompts rolled out to trees) a training step, over all processes."""
    stop_at: dict[str, FiniteFloat] | None = None
    """End the run before `training_steps`, after a training step in which a figure of the reward (`reward/mean`,
    `reward/<term>`, as in `metrics.jsonl`) reaches this value. `{reward/combined_score: 0.4}` trains each seed equally
    far, however many steps it takes. Training steps with few-shot examples don't count."""

    weight_decay: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Weight decay. None: the optimizer's default (0.01 for adamw, otherwise 0)."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Largest global L2 norm of the gradient. None: no clipping."""
    lr_scheduler: Scheduler = "constant"
    """Learning-rate schedule, a name of transformers' `get_scheduler`. It advances once a training step."""
    lr_scheduler_kwargs: dict[str, Any] = {}
    """More arguments of the schedule, such as `min_lr` for cosine_with_min_lr."""
    warmup_steps: int = Field(0, ge=0)
    """Training steps during which the learning rate rises from 0."""
    epochs_per_experience: Count = 1
    """Passes over the examples of an experience, each in a new order."""
    replay: ReplayConfiguration | None = None
    """Train again on examples of earlier experiences. None: only new ones. Not for algorithms that learn on-policy
    (grpo, rloo, ppo)."""
    curriculum: CurriculumConfiguration | None = None
    """Roll prompts out again whose probes fared differently. None: every prompt is drawn anew."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Decides everything random: prompts, sampled tokens, the order of examples."""
    mixed_precision: Precision | None = None
    """Precision of the tester's forward passes in updates. "auto": bf16 where all devices compute in it, else "no".
    None: as `accelerate launch` says."""

    output_dir: Annotated[Path, AfterValidator(lambda path: user_path(str(path)))] | None = None
    """Folder for the run's files. None: a new folder `runs/<date>-<time>`."""
    overwrite_output_dir: bool = False
    """Delete a run that is in `output_dir`, instead of stopping with an error."""
    save_steps: Count | None = 100
    """Training steps between checkpoints; the last step has one too. None: only the best one, and at a signal."""
    save_total_limit: Count | None = 2
    """Checkpoints to keep, besides the best one. None: all."""
    stop_if_unsaved: bool = True
    """Stop when a checkpoint can't be written, for example to a full disk. Otherwise report it and continue."""
    async_save: bool = False
    """Write checkpoints while training continues, from a copy in host memory (trained weights and optimizer state once
    more). Otherwise training waits for the disk."""
    eval_steps: Count | None = None
    """Training steps between evaluations on the dev prompts. None: no evaluation."""
    num_eval_episodes: Count = 32
    """Episodes of such an evaluation."""
    best_metric: str = "reward/mean"
    """Evaluation metric that decides the best checkpoint; higher is better. `attack_success` counts an episode that
    missing scores leave undetermined as no success."""
    best_bounds: dict[str, Bound] | None = None
    """Bounds that the best evaluation, or an improvement for early stopping, has to meet: by metric, factors of the
    untrained tester's value on the same prompts. A number is an upper bound, `{min: 0.8}` a lower one, and `{min: 0.8,
    max: 1.3}` both. `{probe_perplexity/median: 1.3, self_bleu: 1.3}` keeps probes as natural and as different as
    before. The run evaluates the untrained tester first."""
    load_best_at_end: bool = True
    """Give `tester/` the weights of the best checkpoint, if evaluations chose one, instead of the last."""
    push_to_hub: bool = False
    """Upload the trained tester to `hub_model_id` at the end. Permission is checked before anything loads."""
    hub_model_id: str | None = None
    """Repository on the Hugging Face hub: `owner/name`, or `name` in your own namespace."""
    hub_private: bool = True
    """Make the repository private, and refuse one that is public."""
    log_with: list[str] = []
    """Trackers of Accelerate: tensorboard, wandb, trackio, mlflow, …"""
    sample_steps: Count | None = 10
    """Training steps between sample conversations on the screen. None: shows none."""
    num_sample_conversations: int = Field(2, ge=0)
    """Conversations to show each time."""
    allow_changed_prompts: bool = False
    """Resume from a checkpoint although a file or data set of prompts has changed since."""
    timeout: float = Field(600.0, gt=0, allow_inf_nan=False)
    """Seconds that a process waits for the others before the run ends with an error. Set it above the largest time gap
    between ranks in a rollout or an evaluation."""
    max_empty_experiences: Count = 10
    """Experiences in a row without a training example after which the run stops with an error."""

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
        ConfigurationError: the name is not valid; names the field.
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
