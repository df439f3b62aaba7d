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
