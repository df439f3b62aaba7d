"""Adaptive stress testing with transformers models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from astra_accel.config import (
    ComputeConfiguration,
    LoRAConfiguration,
    ModelConfiguration,
    NaturalnessModel,
    RewardConfiguration,
    RolloutConfiguration,
    SamplingConfiguration,
)
from astra_accel.core.optional import KeepsJournal, offers
from astra_accel.core.prompt import Goal, Prompt
from astra_accel.core.scorer import Scorer
from astra_accel.core.seeding import seeded
from astra_accel.methods.ast.endpoint_target import NO_LOGPROBS, EndpointTarget
from astra_accel.methods.ast.rewards.configured import build_terms
from astra_accel.methods.ast.rewards.term import RewardTerm
from astra_accel.methods.ast.system import ASTSystem
from astra_accel.methods.ast.transcript import Segment, Transcript, joined_text, turns_of
from astra_accel.methods.ast.views import Views, check_later_turns, check_prompts
from astra_accel.models.decoding.generation import Generated
from astra_accel.models.decoding.prefill import ScoreRequest
from astra_accel.models.decoding.token_sampling import Seed, check_finite, naming_role, streamed
from astra_accel.models.forward.prefix_tree import num_distinct_tokens
from astra_accel.models.layers.activation_checkpointing import checkpointed_layers
from astra_accel.models.logprobs import pad_logprobs
from astra_accel.models.roles import TESTER_ADAPTER, LanguageModel, RoleFiles, check_packing, find_roles, load_roles

TESTER_STREAM, TARGET_STREAM, ADAPTER_STREAM = 0, 1, 2


class HFASTSystem(ASTSystem[Any, Any]):
    """Adaptive stress testing with transformers models in the three roles.

    States are transcripts; probes and responses are segments of them. Every model method also takes plain strings.
    If tester, target and baseline name the same base model and the tester is LoRA, one copy of the weights serves
    all three.

    Args:
        tester_model_id: hub id, local folder, ``"embedded"`` or ``"tiny"``, or a ``ModelConfiguration``; None is
            the embedded default.
        target_model_id: likewise.
        baseline_model_id: the tester's frozen reference policy; None is the tester's own starting point.
        scorer: rates how unsafe a text is; None is the ``ProfanityScorer``.
        device: the device of all models.
        lora: the tester's adapter; None trains the whole tester.
        rollout: format, context limit and sampling of both models (the sampler sets the tree's shape).
        compute: how the models are run.
        seed: initialises a new adapter's weights.
        ppl_weight, combined_weight, defense_toxicity_weight, min_naturalness, naturalness_model, terms: see
            ``ASTSystem``.

    Raises:
        FileNotFoundError, ValueError: a model, tokenizer, LoRA target or limit does not fit; raised before weights
            load.
    """

    uses_every_parameter = True
    """Every log-prob of the tester depends on all of its trained parameters."""
    state_types = (Transcript, Segment, Goal)

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
        compute: ComputeConfiguration = ComputeConfiguration(),  # noqa: B008
        seed: int = 0,
        ppl_weight: float = RewardConfiguration().ppl_weight,
        combined_weight: float = RewardConfiguration().combined_weight,
        defense_toxicity_weight: float = RewardConfiguration().defense_toxicity_weight,
        min_naturalness: float = RewardConfiguration().min_naturalness,
        naturalness_model: NaturalnessModel = "target",
        terms: Sequence[tuple[float, RewardTerm]] = (),
    ) -> None:
        super().__init__(
            scorer,
            ppl_weight,
            combined_weight,
            defense_toxicity_weight,
            min_naturalness,
            naturalness_model=naturalness_model,
            terms=terms,
        )
        files = find_roles(
            ModelConfiguration.from_name(tester_model_id, "tester_model_id"),
            ModelConfiguration.from_name(target_model_id, "target_model_id"),
            None if baseline_model_id is None else ModelConfiguration.from_name(baseline_model_id, "baseline_model_id"),
            lora,
        )
        self._load(files, rollout, compute, device, seed)

    @classmethod
    def from_files(
        cls,
        files: RoleFiles,
        scorer: Scorer,
        device: torch.device | str,
        rollout: RolloutConfiguration,
        *,
        reward: RewardConfiguration,
        compute: ComputeConfiguration = ComputeConfiguration(),  # noqa: B008
        seed: int = 0,
    ) -> HFASTSystem:
        """Build a system of models whose files were already found."""
        system = cls.__new__(cls)
        ASTSystem.__init__(
            system,
            scorer,
            reward.ppl_weight,
            reward.combined_weight,
            reward.defense_toxicity_weight,
            reward.min_naturalness,
            naturalness_model=reward.naturalness_model,
            terms=build_terms(reward, seed, device),
        )
        system._load(files, rollout, compute, device, seed)
        return system

    def _load(
        self,
        files: RoleFiles,
        rollout: RolloutConfiguration,
        compute: ComputeConfiguration,
        device: torch.device | str,
        seed: int,
    ) -> None:
        self.rollout_config = rollout
        if files.endpoint is not None and getattr(self.reward_terms.terms["naturalness"], "model", None) == "target":
            raise ValueError(NO_LOGPROBS)
        self.views = Views.from_files(files, rollout)
        files = self.views.with_end_ids(files)
        with seeded([seed, ADAPTER_STREAM]):
            self.roles = load_roles(files, device, compute)
        self.tester = self.roles.trained
        self.endpoint_target = EndpointTarget.from_files(files, self.views, rollout)
        self.token_budget = compute.token_budget
        check_packing(self.roles, compute)
        if compute.activation_checkpointing and not checkpointed_layers(self.tester):
            raise ValueError(
                f"compute.activation_checkpointing is set, but {files.tester.source} has no layers that can do it"
            )

    def rolling_out(self, num_turns: int | None = None) -> AbstractContextManager[None]:
        """A context manager for the turns of one rollout: each continues from what the models read in earlier turns.

        The tester's weights must not change within it. With ``num_turns``, each model must be called that many times;
        what it has read is dropped after the last call.
        """
        return self.roles.rolling_out(num_turns)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The tester's trainable parameters."""
        return (parameter for parameter in self.tester.parameters() if parameter.requires_grad)

    @property
    def asks_endpoint(self) -> bool:
        """Whether the target or the scorer is behind an endpoint."""
        return self.endpoint_target is not None or offers(self.scorer, KeepsJournal)

    def keep_journal(self, journal: Any) -> None:
        """Record every question to an endpoint in a journal, and ask nothing that the journal already answers."""
        if self.endpoint_target is not None:
            self.endpoint_target.client.keep_journal(journal)
        if offers(self.scorer, KeepsJournal):
            self.scorer.keep_journal(journal)

    def start(self, prompt: str | Prompt) -> Transcript:
        """Return the state that consists of a prompt, with its goal if it has one."""
        return self.views.prompt(prompt)

    def check_prompts(self, prompts: Sequence[str | Prompt], tree_depth: int = 1) -> None:
        """Raise ``ValueError`` for the first prompt that is blank or leaves no room for a turn, or for later turns."""
        check_prompts(prompts, self.views, self.rollout_config)
        if tree_depth > 1:
            check_later_turns(self.views, self.rollout_config)

    def advance(self, context: Transcript, probe: Segment, response: Segment) -> Transcript:
        """Return the conversation with one more turn."""
        asked = context + self.views.completed(probe, context)
        return asked + self.views.completed(response, asked)

    def preceded(self, context: Transcript | str, text: str) -> Transcript:
        """Return the conversation with a text put before its prompt."""
        state = self._state(context)
        prompt, *rest = state.segments
        begun = self.views.segment("prompt", text + prompt.text, replace(state, segments=()))
        return replace(state, segments=(begun, *rest))

    def exchange_text(self, probe: Segment | str, response: Segment | str) -> str:
        """Return probe and response as they appear in the transcript."""
        separator = self.views.tester.format.separator
        if isinstance(probe, Segment) and isinstance(response, Segment):
            response = self.views.completed(response, Transcript((probe,), separator))
        return joined_text((probe, response), separator)

    def rollout_prompt_with_tester(
        self, prompt: Sequence[Transcript | str], *, seeds: Sequence[Seed] | None = None
    ) -> list[Segment]:
        """Sample a probe for each state.

        Args:
            prompt: the states.
            seeds: non-negative ints for each row that determine its random numbers; None draws them from torch's
                global generator.

        Raises:
            NonFiniteLogitsError: the tester's logits hold nan or inf.
        """
        sampling = self.rollout_config.tester
        states = [self._state(state) for state in prompt]
        contexts = [self.views.tester.own_turn(state, sampling.max_new_tokens) for state in states]
        with naming_role("tester", turns_of(states)):
            sampled = self._generate(self.roles.tester, contexts, sampling, seeds, stream=TESTER_STREAM)
        end_ids = self.roles.tester.files.end_ids
        return [
            self.views.probe(row.ids, end_ids, row.logprobs, state) for row, state in zip(sampled, states, strict=True)
        ]

    def rollout_prompt_with_target(
        self, prompt: Sequence[Transcript | str], *, seeds: Sequence[Seed] | None = None
    ) -> list[Segment]:
        """Sample a response for each state, which ends with a probe; seeds and errors as for the tester."""
        sampling = self.rollout_config.target
        states = [self._state(state) for state in prompt]
        if self.endpoint_target is not None:
            return self.endpoint_target.responses(states, streamed(seeds, len(states), TARGET_STREAM))
        contexts = [self.views.target.own_turn(state, sampling.max_new_tokens) for state in states]
        in_rollout = self.roles.in_rollout
        scored = (
            [self.views.score_request(*pair) for pair in zip(states, contexts, strict=True)] if in_rollout else None
        )
        with naming_role("target", turns_of(states)):
            sampled = self._generate(self.roles.target, contexts, sampling, seeds, stream=TARGET_STREAM, scored=scored)
        end_ids = self.roles.target.files.end_ids
        return [
            self.views.response(row.ids, end_ids, row.logprobs, state)
            for row, state in zip(sampled, states, strict=True)
        ]

    def get_tester_logprobs(
        self, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]
    ) -> torch.Tensor:
        """Log-probs of the probes' sampled tokens, including the end of the turn, ``[batch, tokens]``."""
        return self._policy_logprobs(self.roles.tester, context, continuation)

    @torch.no_grad()
    def get_baseline_logprobs(
        self, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]
    ) -> torch.Tensor:
        """Log-probs of the same tokens under the baseline, ``[batch, tokens]``, without gradient."""
        return self._policy_logprobs(self.roles.baseline, context, continuation)

    @torch.no_grad()
    def get_target_logprobs(
        self, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]
    ) -> torch.Tensor:
        """Log-probs of the probes' content as the target reads it, ``[batch, tokens]``, without gradient.

        Raises:
            ValueError: the target is behind an endpoint, which gives none.
        """
        if self.endpoint_target is not None:
            raise ValueError(NO_LOGPROBS)
        probes = [probe.target_ids for probe in self._probes(context, continuation)]
        contexts = [
            self.views.target.other_turn(self._state(state), len(ids))
            for state, ids in zip(context, probes, strict=True)
        ]
        return pad_logprobs(self.roles.target.logprobs(contexts, probes))

    def num_tokens(self, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]) -> int:
        """The number of distinct tokens that the tester reads to score these probes together."""
        sequences = [
            (*ids, *probe.sampled_ids)[:-1]
            for ids, probe in zip(self._policy_contexts(context), self._probes(context, continuation), strict=True)
        ]
        return num_distinct_tokens(sequences)

    def sampled_logprobs(self, probe: Sequence[Segment | str]) -> list[tuple[float, ...] | None]:
        """The log-probs of each probe's tokens as recorded in sampling; None for a probe that no tester sampled."""
        return [self._probe(item).sampled_logprobs for item in probe]

    def num_probe_tokens(self, probe: Sequence[Segment | str]) -> list[int]:
        """How many tokens of each probe have log-probs under the tester and the baseline."""
        return [len(self._probe(item).sampled_ids) for item in probe]

    def probe_logprobs(
        self,
        context: Sequence[Transcript | str],
        probe: Sequence[Segment | str],
        model: NaturalnessModel = "target",
    ) -> list[torch.Tensor]:
        """The log-probs of the tokens of each probe's content under a model, ``[tokens]`` per probe, on the CPU.

        The end of the turn is not content, nor is thinking: an empty probe has no tokens, however likely its end.

        Raises:
            NonFiniteLogitsError: the model's logits hold nan or inf.
        """
        probes = self._probes(context, probe)
        asked = [self._state(state) + item for state, item in zip(context, probes, strict=True)]
        with naming_role(model, turns_of(asked)):
            rows = self._content_logprobs(context, probes, model)
            for row in rows:
                check_finite(row.tolist())
        return rows

    def _content_logprobs(
        self, context: Sequence[Transcript | str], probes: Sequence[Segment], model: NaturalnessModel
    ) -> list[torch.Tensor]:
        if model == "target":
            logprobs_BT = self.get_target_logprobs(context, probes).cpu()
            contents = [slice(len(item.target_ids)) for item in probes]
        else:
            logprobs_BT = self.get_baseline_logprobs(context, probes).cpu()
            contents = [self.views.content_of(item) for item in probes]
            self._recall_baseline(context, probes, logprobs_BT)
        return [row[content] for row, content in zip(logprobs_BT, contents, strict=True)]

    def _recall_baseline(
        self, context: Sequence[Transcript | str], probes: Sequence[Segment], logprobs_BT: torch.Tensor
    ) -> None:
        """Keep the baseline's log-probs, as algorithms ask for those of the same probes again."""
        for ids, item, row in zip(self._policy_contexts(context), probes, logprobs_BT.tolist(), strict=True):
            self.roles.baseline.keep(ids, item.sampled_ids, tuple(row[: len(item.sampled_ids)]))

    def save_pretrained(self, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the tester (only the adapter if it is LoRA) and its tokenizer.

        Args:
            folder: the folder to write to.
            state_dict: the trained weights by their names in this system (``tester.…``), if its own are sharded over
                processes.
        """
        options: dict[str, Any] = {}
        if state_dict is not None:
            options["state_dict"] = self.roles.at_rest() | within(state_dict, "tester")
        if self.roles.trained is not self.roles.tester.model:
            options["selected_adapters"] = [TESTER_ADAPTER]
        self.tester.save_pretrained(folder, **options)
        self.roles.tester.files.tokenizer.save_pretrained(folder)

    def _policy_logprobs(
        self, policy: LanguageModel, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]
    ) -> torch.Tensor:
        contexts = self._policy_contexts(context)
        sampled = [probe.sampled_ids for probe in self._probes(context, continuation)]
        return pad_logprobs(policy.logprobs(contexts, sampled))

    def _policy_contexts(self, context: Sequence[Transcript | str]) -> list[tuple[int, ...]]:
        # The context must be the one that the probe was sampled in, so leave room for a whole turn.
        room = self.rollout_config.tester.max_new_tokens
        return [self.views.tester.own_turn(self._state(state), room) for state in context]

    def _generate(
        self,
        role: LanguageModel,
        contexts: Sequence[tuple[int, ...]],
        sampling: SamplingConfiguration,
        seeds: Sequence[Seed] | None,
        *,
        stream: int,
        scored: Sequence[ScoreRequest] | None = None,
    ) -> list[Generated]:
        seeds = streamed(seeds, len(contexts), stream)
        batch_rows = self.rollout_config.rows_on(role.model.device.type)
        return role.generate(contexts, seeds, sampling, batch_rows, scored)

    def _state(self, state: Transcript | str) -> Transcript:
        return self.start(state) if isinstance(state, str | Prompt) else state

    def _probes(self, states: Sequence[Transcript | str], probes: Sequence[Segment | str]) -> list[Segment]:
        return [self._probe(probe, self._state(state)) for state, probe in zip(states, probes, strict=True)]

    def _probe(self, probe: Segment | str, state: Transcript | None = None) -> Segment:
        return self.views.segment("probe", probe, state) if isinstance(probe, str) else probe


def within(state_dict: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The weights of one attribute of a system, by their names in that attribute."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
