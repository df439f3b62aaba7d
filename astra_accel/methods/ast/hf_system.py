"""Adaptive stress testing with transformers models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from astra_accel.config import (
    LoRAConfiguration,
    ModelConfiguration,
    RewardConfiguration,
    RolloutConfiguration,
    SamplingConfiguration,
)
from astra_accel.core.scorer import Scorer
from astra_accel.core.seeding import seeded
from astra_accel.methods.ast.system import ASTSystem
from astra_accel.methods.ast.transcript import Segment, Transcript
from astra_accel.methods.ast.views import Views, check_later_turns, check_prompts
from astra_accel.models.logprobs import pad_logprobs
from astra_accel.models.roles import LanguageModel, RoleFiles, find_roles, load_roles
from astra_accel.models.sampling import uniforms

Seed = Sequence[int]
TESTER_STREAM, TARGET_STREAM, ADAPTER_STREAM = 0, 1, 2


class HFASTSystem(ASTSystem[Any, Any]):
    """Adaptive stress testing with transformers models in the three roles.

    States are transcripts, probes and responses segments of them; every model method also takes plain strings.
    Where tester, target and baseline name the same base model and the tester is LoRA, one copy of the weights
    serves all three.

    Args:
        tester_model_id: hub id, local folder, ``"embedded"`` or ``"tiny"``, or a ``ModelConfiguration``; None is
            the embedded default.
        target_model_id: likewise.
        baseline_model_id: the tester's frozen reference policy; None is the tester's own starting point.
        scorer: says how unsafe a text is; None is the ``ProfanityScorer``.
        device: of all the models.
        lora: the tester's adapter; None trains the whole tester.
        rollout: format, context limit and sampling of both models (the tree's shape is the sampler's).
        seed: of a new adapter's weights.
        ppl_weight, combined_weight, defense_toxicity_weight, min_naturalness: see ``ASTSystem``.

    Raises:
        FileNotFoundError, ValueError: a model, tokenizer, LoRA target or limit that does not fit, before weights
            load.
    """

    uses_every_parameter = True
    """Every log-prob of the tester depends on all of its trained parameters."""

    def __init__(
        self,
        tester_model_id: str | Path | ModelConfiguration | None = None,
        target_model_id: str | Path | ModelConfiguration | None = None,
        baseline_model_id: str | Path | ModelConfiguration | None = None,
        scorer: Scorer | None = None,
        device: torch.device | str = "cpu",
        *,
        lora: LoRAConfiguration | None = LoRAConfiguration(),  # noqa: B008
        rollout: RolloutConfiguration = RolloutConfiguration(),  # noqa: B008
        seed: int = 0,
        ppl_weight: float = RewardConfiguration().ppl_weight,
        combined_weight: float = RewardConfiguration().combined_weight,
        defense_toxicity_weight: float = RewardConfiguration().defense_toxicity_weight,
        min_naturalness: float = RewardConfiguration().min_naturalness,
    ) -> None:
        super().__init__(scorer, ppl_weight, combined_weight, defense_toxicity_weight, min_naturalness)
        files = find_roles(
            _model(tester_model_id, "tester_model_id"),
            _model(target_model_id, "target_model_id"),
            None if baseline_model_id is None else _model(baseline_model_id, "baseline_model_id"),
            lora,
        )
        self._load(files, rollout, device, seed)

    @classmethod
    def of(
        cls,
        files: RoleFiles,
        scorer: Scorer,
        device: torch.device | str,
        rollout: RolloutConfiguration,
        reward: RewardConfiguration,
        *,
        seed: int = 0,
    ) -> HFASTSystem:
        """A system of models that were found already."""
        system = cls.__new__(cls)
        ASTSystem.__init__(system, scorer, **reward.model_dump())
        system._load(files, rollout, device, seed)
        return system

    def _load(self, files: RoleFiles, rollout: RolloutConfiguration, device: torch.device | str, seed: int) -> None:
        self.rollout_config = rollout
        self.views = Views.of(files, rollout)
        with seeded([seed, ADAPTER_STREAM]):
            self.roles = load_roles(files, device)
        self.tester = self.roles.trained

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The tester's parameters that are trained."""
        return (parameter for parameter in self.tester.parameters() if parameter.requires_grad)

    def start(self, prompt: str) -> Transcript:
        """The state that a prompt is."""
        return self.views.prompt(prompt)

    def check_prompts(self, prompts: Sequence[str], tree_depth: int = 1) -> None:
        """Raise ``ValueError`` for the first prompt that is blank or leaves no room for a turn, or for later ones."""
        check_prompts(prompts, self.views, self.rollout_config)
        if tree_depth > 1:
            check_later_turns(self.views, self.rollout_config)

    def exchange_text(self, probe: Segment, response: Segment) -> str:
        """Probe and response as they stand in the transcript."""
        return f"{probe}{self.views.tester.format.separator}{response}"

    def rollout_prompt_with_tester(
        self, prompt: Sequence[Transcript | str], *, seeds: Sequence[Seed] | None = None
    ) -> list[Segment]:
        """A probe for each state.

        Args:
            prompt: the states.
            seeds: non-negative ints for each row, from which its random numbers follow; None draws them from
                torch's global generator.
        """
        sampling = self.rollout_config.tester
        contexts = [self.views.tester.own_turn(self._state(state), sampling.max_new_tokens) for state in prompt]
        sampled = self._generate(self.roles.tester, contexts, sampling, seeds, TESTER_STREAM)
        return [self.views.probe(ids, self.roles.tester.files.end_ids) for ids in sampled]

    def rollout_prompt_with_target(
        self, prompt: Sequence[Transcript | str], *, seeds: Sequence[Seed] | None = None
    ) -> list[Segment]:
        """A response for each state that ends with a probe; seeds as for the tester."""
        sampling = self.rollout_config.target
        contexts = [self.views.target.own_turn(self._state(state), sampling.max_new_tokens) for state in prompt]
        sampled = self._generate(self.roles.target, contexts, sampling, seeds, TARGET_STREAM)
        return [self.views.response(ids, self.roles.target.files.end_ids) for ids in sampled]

    def get_tester_logprobs(
        self, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]
    ) -> torch.Tensor:
        """Log-probs of the probes' sampled tokens, the end of the turn included, ``[batch, tokens]``."""
        return self._policy_logprobs(self.roles.tester, context, continuation)

    @torch.no_grad()
    def get_baseline_logprobs(
        self, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]
    ) -> torch.Tensor:
        """The same tokens under the baseline, ``[batch, tokens]``, without gradient."""
        return self._policy_logprobs(self.roles.baseline, context, continuation)

    @torch.no_grad()
    def get_target_logprobs(
        self, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]
    ) -> torch.Tensor:
        """Log-probs of the probes' content as the target hears it, ``[batch, tokens]``, without gradient."""
        probes = [self._probe(item).target_ids for item in continuation]
        contexts = [
            self.views.target.other_turn(self._state(state), len(ids))
            for state, ids in zip(context, probes, strict=True)
        ]
        return pad_logprobs(self.roles.target.logprobs(contexts, probes))

    def token_counts(self, probe: Sequence[Segment | str], logprobs_BT: torch.Tensor) -> torch.Tensor:
        """Tokens of each probe as the target reads it, ``[batch]``."""
        return torch.tensor([len(self._probe(item).target_ids) for item in probe], device=logprobs_BT.device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tester (the adapter alone where it is LoRA) and its tokenizer."""
        if self.roles.trained is self.roles.tester.model:
            self.tester.save_pretrained(folder)
        else:
            self.tester.save_pretrained(folder, selected_adapters=["default"])
        self.roles.tester.files.tokenizer.save_pretrained(folder)

    def _policy_logprobs(
        self, policy: LanguageModel, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]
    ) -> torch.Tensor:
        # The context must be the one that the probe was sampled in, so room is left for a whole turn.
        room = self.rollout_config.tester.max_new_tokens
        contexts = [self.views.tester.own_turn(self._state(state), room) for state in context]
        return pad_logprobs(policy.logprobs(contexts, [self._probe(item).sampled_ids for item in continuation]))

    def _generate(
        self,
        role: LanguageModel,
        contexts: Sequence[tuple[int, ...]],
        sampling: SamplingConfiguration,
        seeds: Sequence[Seed] | None,
        stream: int,
    ) -> list[tuple[int, ...]]:
        if seeds is None:
            seeds = [(int(number),) for number in torch.randint(2**62, (len(contexts),))]
        numbers = [uniforms((*seed, stream), sampling.max_new_tokens) for seed in seeds]
        return role.generate(contexts, numbers, sampling, self.rollout_config.batch_rows)

    def _state(self, state: Transcript | str) -> Transcript:
        return self.start(state) if isinstance(state, str) else state

    def _probe(self, probe: Segment | str) -> Segment:
        return self.views.segment("probe", probe) if isinstance(probe, str) else probe


def _model(model: str | Path | ModelConfiguration | None, name: str) -> ModelConfiguration:
    if model is None:
        return ModelConfiguration()
    if isinstance(model, ModelConfiguration):
        return model
    if isinstance(model, str | Path):
        return ModelConfiguration(path=str(model))
    raise TypeError(f"{name} is a {type(model).__name__}; expected a hub id, a folder or a ModelConfiguration")
