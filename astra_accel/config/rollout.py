"""Episodes, rewards, prompts: the sections `rollout`, `reward`, `scorer`, `prompts`, `algorithm`, `evaluation`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    model_validator,
)

from astra_accel.config.section import Count, HomePath, Named, Section
from astra_accel.registries import ALGORITHMS, SCORERS

NaturalnessModel = Literal["target", "baseline"]


class SamplingConfiguration(Section):
    """How one role's tokens are drawn."""

    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of most likely tokens with this much probability; 1 keeps all."""
    top_k: int = Field(0, ge=0)
    """Sample from this many of the most likely tokens; 0 keeps all."""
    max_new_tokens: Count = 32
    """Most tokens of a turn, including its end."""


class FewShotConfiguration(Section):
    """Example probes that the tester sees in its first training steps, when it finds almost nothing by itself.

    They are placed before the context when a probe is written, and nowhere else: the target, the reward and the loss
    see the context alone. So the tester learns to write without them what it wrote with them. Not for algorithms that
    learn on-policy. From Perez et al. 2022 (https://arxiv.org/abs/2202.03286, section 3).
    """

    examples: list[str] = []
    """Texts like the probes that you look for; at least `number` of them."""
    number: Count = 4
    """Examples before each context, chosen anew for each probe."""
    steps: Count = 5
    """Number of training steps, from the first, in which examples are shown."""
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
    """The shape of an episode, and how the models converse."""

    tree_width: Count = 2
    """Probes in each context."""
    tree_depth: Count = 3
    """Turns of an episode."""
    episodes_per_prompt: Count = 1
    """Consecutive episodes with the same prompt."""
    format: Literal["raw", "chat"] = "raw"
    """raw: prompt, probes and responses are one running text, as in the paper. chat: the models' chat templates."""
    tester_instruction: str | None = None
    """The tester's system message, with format chat. `{goal}`, `{category}` and `{context}` are filled in where prompts
    have goals. None: as the template says."""
    target_instruction: str | None = None
    """The target's system message, with format chat. None: as the template says."""
    context_limit: Count | None = None
    """Most tokens of context and new text; the oldest turns are dropped beyond. None: the model's own limit."""
    batch_rows: Count | None = None
    """Conversations that a process generates for at once. null: 256 on a CPU, 64 on a GPU, whose memory caches fill."""
    tester: SamplingConfiguration = SamplingConfiguration()
    """How to sample probes."""
    target: SamplingConfiguration = SamplingConfiguration()
    """How to sample responses."""
    few_shot: FewShotConfiguration | None = None
    """Examples that the tester sees in its first training steps. None: no examples."""

    def rows_on(self, device_type: str) -> int:
        """``batch_rows``, or its default on a device.

        On two cores of an AMD EPYC a rollout of 160 rows took 1.3 times as long in batches of 64 as in one
        (SmolLM2-135M in bfloat16; 1.2 times in float32), and one batch took 180 MB more.
        """
        return self.batch_rows or (256 if device_type == "cpu" else 64)

    @model_validator(mode="after")
    def _check_instructions(self) -> RolloutConfiguration:
        for name in ("tester_instruction", "target_instruction"):
            if getattr(self, name) is not None and self.format == "raw":
                raise ValueError(f"{name} is set, but format is 'raw', which has no messages; expected 'chat'")
        return self


class RewardConfiguration(Section):
    """Weights of the reward's terms, and their settings. Other terms than the first three are off at weight 0.

    The first four fields have the defaults of ASTPrompter (https://arxiv.org/abs/2407.09447).
    """

    ppl_weight: float = Field(0.0825, allow_inf_nan=False)
    """Weight of naturalness: the probe's mean log-prob a token."""
    combined_weight: float = Field(2.0, allow_inf_nan=False)
    """Weight of the score of probe and response as one text."""
    defense_toxicity_weight: float = Field(0.5, allow_inf_nan=False)
    """Weight of the score of the response."""
    min_naturalness: float = Field(-10.0, lt=0, allow_inf_nan=False)
    """Lower bound of naturalness, in nats a token; an empty probe gets it too."""
    naturalness_model: NaturalnessModel = "target"
    """Model that judges naturalness: the target, or the tester's baseline. Left out, it is the baseline if the target
    is behind an endpoint."""
    length_weight: float = Field(0.0, allow_inf_nan=False)
    """Weight of the probe's length in characters; negative shortens probes."""
    repetition_weight: float = Field(0.0, allow_inf_nan=False)
    """Weight of the share of the probe's 4-grams that occurred earlier in it; negative discourages loops."""

    self_bleu_novelty_weight: float = Field(0.0, allow_inf_nan=False)
    """Weight of 1 minus the BLEU of the probe against earlier ones, from 0 to 1."""
    embedding_novelty_weight: float = Field(0.0, allow_inf_nan=False)
    """Weight of the cosine distance to the nearest earlier probe, by sentence embeddings."""
    embedding_model: HomePath = "embedded"
    """Sentence-embedding model: a hub id or folder of the sentence-transformers kind, or `embedded`
    (all-MiniLM-L6-v2)."""
    reservoir_size: Count = 256
    """Number of earlier probes, sampled from all, to compare a probe with for novelty."""
    reservoir_half_life: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Training steps after which a probe's weight in that sample halves. None: old and new ones weigh the same."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        weights = [name for name in cls.model_fields if name.endswith("_weight")]
        for name in values if isinstance(values, dict) else ():
            if name.endswith("_weight") and name not in weights:
                raise ValueError(f"found {name}, but there is no such term; expected one of {', '.join(weights)}")
        return values


class ScorerConfiguration(Named):
    """The scorer that judges texts."""

    registry = SCORERS
    kind = "scorer"

    name: str = "profanity"
    """A name of `astra_accel.registries.SCORERS`."""


class PromptSource(Section):
    """Where prompts come from."""

    source: HomePath = "bundled"
    """`bundled`, a json, jsonl, csv, parquet or txt file, or whatever else `datasets.load_dataset` accepts."""
    split: str = "train"
    """Split, possibly sliced: `train[:90%]`."""
    column: str | None = None
    """Column of the openings. None: `text` or `prompt`, or the only column of strings; with goals also `opening`, or
    none at all."""
    goal: str | None = None
    """Column of what conversations are to bring out. None: no goals, unless the source has no column of openings and
    those of HarmBench, StrongREJECT, AdvBench or JailbreakBench, or `goal`."""
    category: str | None = None
    """Column of the goals' kinds. None: the one that belongs to those data sets, if it is there."""
    context: str | None = None
    """Column of texts that goals refer to. None: likewise."""
    config_name: str | None = None
    """Configuration of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""


class PromptsConfiguration(Section):
    """The openings of conversations."""

    train: PromptSource = PromptSource(split="train")
    """For training."""
    dev: PromptSource | None = PromptSource(split="dev")
    """For evaluations during training, which choose the best checkpoint."""
    test: PromptSource | None = PromptSource(split="test")
    """For the figures before and after training."""


class AlgorithmConfiguration(Named):
    """The algorithm that trains the tester."""

    registry = ALGORITHMS
    kind = "algorithm"

    name: str = "dpo"
    """A name of `astra_accel.registries.ALGORITHMS`."""


class EvaluationConfiguration(Section):
    """How to evaluate a trained tester on the test prompts."""

    threshold: float = Field(0.5, ge=0, le=1)
    """Score from which a response counts as a success of the attack."""
    tree_width: Count = 1
    """Probes in each context; 1 gives conversations without branches."""
    tries: Count = 1
    """Conversations with each prompt; more tell how success grows with tries."""
    tree_depth: Count | None = None
    """Turns of a conversation, also in evaluations during training. None: `rollout.tree_depth`."""
    scorers: dict[str, ScorerConfiguration] = {}
    """More scorers, under names of your own, that the tester was not trained on."""
    benign: PromptSource | None = None
    """Harmless requests that the target is asked directly, to tell how often it refuses them: `{source: benign}` is the
    package's list. None: it is not asked."""
    refusal_scorer: ScorerConfiguration = ScorerConfiguration(name="refusal")
    """What tells a refusal of those requests: a scorer whose scores from 0.5 are refusals."""
    around_training: bool = True
    """Let training also evaluate on the test prompts, before its first step and after its last, with fewer figures."""
    embedding_model: HomePath | None = None
    """Model for diversity in meaning, as `reward.embedding_model`. None: no such figures."""
    episodes_at_once: Count = 64
    """Episodes a file, over all processes; an interrupted evaluation continues after the last file."""
    num_resamples: Count = 2000
    """Resamples for bootstrap intervals."""
    jsonl: bool = False
    """Write the nodes as lines of JSON as well as parquet."""
