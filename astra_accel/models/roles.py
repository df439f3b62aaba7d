"""Tester, target and baseline, on as few copies of the weights as possible.

A base model that several roles name is loaded once. The tester is base + its adapter; a frozen role on the same
base is the base with that adapter off, or with an adapter of its own switched on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights

from astra_accel.config import ComputeConfiguration, LoRAConfiguration, ModelConfiguration, SamplingConfiguration
from astra_accel.models.files import ModelFiles, check_lora_targets, find_model, same_tokenizer
from astra_accel.models.generation import Generated, generate
from astra_accel.models.kv_cache import PrefixCache
from astra_accel.models.logprobs import sequence_logprobs
from astra_accel.models.lora_linear import fuse_adapters
from astra_accel.models.memory import return_freed_memory
from astra_accel.models.merging import merged_adapter
from astra_accel.models.quantization import check_device, check_quantization
from astra_accel.models.reading import Scored
from astra_accel.models.recall import Recall
from astra_accel.models.sampling import Seed

Ids = tuple[int, ...]

TESTER_ADAPTER = "default"


@dataclass
class LanguageModel:
    """One role: a causal language model, its tokenizer, and the switch that turns shared weights into this role.

    Attributes:
        model: the transformers model, with adapter layers inside where there are any.
        files: its tokenizer, limits and end-of-turn tokens.
        switch: a context in which ``model`` is this role.
        compute: how it is run.
        recall: log-probs that are known already, for a role whose weights stay as they are.
        memory: what it has read in the turns of a rollout so far, while there is one.
        turns_left: of that rollout; None where nobody knows.
    """

    model: Any
    files: ModelFiles
    switch: Callable[[], AbstractContextManager[Any]] = nullcontext
    compute: ComputeConfiguration = field(default_factory=ComputeConfiguration)
    recall: Recall | None = None
    memory: PrefixCache | None = None
    turns_left: int | None = None

    def logprobs(self, contexts: Sequence[Ids], continuations: Sequence[Ids]) -> list[torch.Tensor]:
        """The log-prob of every token of each continuation.

        See :func:`~astra_accel.models.logprobs.sequence_logprobs`. What a frozen role said during the rollout is
        looked up.
        """
        found = [None] * len(contexts) if self.recall is None else self.recall.find(contexts, continuations)
        missing = [index for index, values in enumerate(found) if values is None]
        with self.switch():
            computed = sequence_logprobs(
                self.model,
                [contexts[index] for index in missing],
                [continuations[index] for index in missing],
                packing=self.compute.packing,
                token_budget=self.compute.token_budget,
                activation_checkpointing=self.compute.activation_checkpointing,
            )
        results = dict(zip(missing, computed, strict=True))
        return [
            results[index] if values is None else torch.tensor(values, device=self.model.device)
            for index, values in enumerate(found)
        ]

    def generate(
        self,
        contexts: Sequence[Ids],
        seeds: Sequence[Seed],
        sampling: SamplingConfiguration,
        batch_rows: int,
        scored: Sequence[Scored] | None = None,
    ) -> list[Generated]:
        """See :func:`~astra_accel.models.generation.generate`."""
        with self.switch():
            generated = generate(
                self.model,
                contexts,
                seeds,
                sampling,
                end_ids=self.files.end_ids,
                batch_rows=batch_rows,
                memory=self.memory,
                remember=self.turns_left != 1,
                scored=scored,
            )
        if self.turns_left is not None:
            self.turns_left -= 1
        if scored is not None and self.recall is not None:
            for context, asked, row in zip(contexts, scored, generated, strict=True):
                if row.scored is not None:
                    self.recall.keep(context[: asked.start], asked.ids, row.scored)
        return generated


@dataclass
class Roles:
    """The three roles, and the module that is trained (a PEFT model, or the tester itself)."""

    tester: LanguageModel
    target: LanguageModel
    baseline: LanguageModel
    trained: Any

    @contextmanager
    def rolling_out(self, num_turns: int | None = None) -> Iterator[None]:
        """A rollout, in which no weights move: each role goes on from what it has read in the turns before.

        Behind the last of ``num_turns`` it keeps nothing.
        """
        for role in (self.target, self.baseline):
            if role.recall is not None:
                role.recall.clear()
        return_freed_memory(self.target.model.device)
        for role in (self.tester, self.target):
            role.memory, role.turns_left = PrefixCache(), num_turns
        switch = self.tester.switch
        if self.tester.compute.merge_adapter:
            self.tester.switch = merged_adapter(self.tester.model, TESTER_ADAPTER) or switch
        try:
            yield
        finally:
            self.tester.switch = switch
            for role in (self.tester, self.target):
                role.memory = role.turns_left = None


@dataclass(frozen=True)
class RoleFiles:
    """The three models before their weights load."""

    tester: ModelFiles
    target: ModelFiles
    baseline: ModelFiles
    configurations: dict[str, ModelConfiguration]
    lora: LoRAConfiguration | None

    @property
    def shared_tokenizer(self) -> bool:
        """Whether tester and target read the same token ids."""
        return same_tokenizer(self.tester.tokenizer, self.target.tokenizer)


def find_roles(
    tester: ModelConfiguration,
    target: ModelConfiguration,
    baseline: ModelConfiguration | None,
    lora: LoRAConfiguration | None,
) -> RoleFiles:
    """Find the models of all roles and check that they fit one another, before any weights load.

    Raises:
        FileNotFoundError, ValueError: as :func:`~astra_accel.models.files.find_model`; or the baseline does not
            share the tester's tokenizer; or LoRA's target modules match nothing; or a tester of 4 bits is to be trained
            in full, or was quantised before.
        ImportError: a model is to be quantised, and bitsandbytes is not installed.
    """
    baseline = tester if baseline is None else baseline
    found: dict[tuple[str, str | None], ModelFiles] = {}
    configurations = {"tester": tester, "target": target, "baseline": baseline}
    for role, model in configurations.items():
        if (model.path, model.revision) not in found:
            found[model.path, model.revision] = find_model(model, role)
    files = {role: found[model.path, model.revision] for role, model in configurations.items()}
    for role, model in configurations.items():
        check_quantization(model, role, files[role].config)
    if tester.quantization is not None and lora is None and tester.adapter is None:
        raise ValueError(
            f"tester.quantization is {tester.quantization!r}, but lora is null, which trains all of the tester; "
            f"expected an adapter, or quantization null"
        )
    if not same_tokenizer(files["tester"].tokenizer, files["baseline"].tokenizer):
        raise ValueError(
            f"the baseline ({files['baseline'].source}) has another tokenizer than the tester "
            f"({files['tester'].source}); it is the tester's reference policy and must share it"
        )
    if lora is not None and tester.adapter is None:
        check_lora_targets(lora, files["tester"])
    return RoleFiles(**files, configurations=configurations, lora=lora)


def load_roles(
    files: RoleFiles,
    device: torch.device | str,
    compute: ComputeConfiguration = ComputeConfiguration(),  # noqa: B008
) -> Roles:
    """Load the weights of all roles on a device.

    Raises:
        ValueError: a model is to be quantised, which the device can't compute with, or lacks weights.
    """
    for role, model in files.configurations.items():
        check_device(model.quantization, role, device)
    tester = files.configurations["tester"]
    trained_in_full = files.lora is None and tester.adapter is None
    bases: dict[tuple[Any, ...], _Base] = {}
    base = _load_base(files.tester, tester, device, in_full=trained_in_full)
    if trained_in_full:
        base.model.requires_grad_(True)
    else:
        base.adapt(tester.adapter, files.lora)
        bases[_key(tester, device)] = base
    frozen = {}
    for role in ("baseline", "target"):
        model = files.configurations[role]
        if _key(model, device) not in bases:
            bases[_key(model, device)] = _load_base(getattr(files, role), model, device)
        frozen[role] = bases[_key(model, device)].frozen_role(model, role, compute)
    trained = base.model if trained_in_full else base.peft
    return Roles(tester=LanguageModel(base.model, files.tester, compute=compute), trained=trained, **frozen)


@dataclass
class _Base:
    """One copy of a model's weights, and the adapters on it."""

    model: Any
    files: ModelFiles
    peft: PeftModel | None = None
    trains_adapter: bool = False
    adapters: dict[str, str] = field(default_factory=dict)
    recalls: dict[str | None, Recall] = field(default_factory=dict)

    def adapt(self, adapter: str | None, lora: LoRAConfiguration | None) -> None:
        """Put the tester's adapter on: an existing one to go on training, or a new one."""
        if adapter is not None:
            with _peft_asks_by_old_names():
                self.peft = PeftModel.from_pretrained(
                    self.model, _lora_adapter(adapter), TESTER_ADAPTER, is_trainable=True
                )
            _check_fits(adapter, self.peft, TESTER_ADAPTER)
        else:
            assert lora is not None
            lora_config = LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                target_modules=lora.target_modules,
                lora_dropout=0.0,
                task_type="CAUSAL_LM",
            )
            with _peft_asks_by_old_names():
                self.peft = get_peft_model(self.model, lora_config, TESTER_ADAPTER)
        self.peft.eval()
        fuse_adapters(self.model)
        self.trains_adapter = True

    def frozen_role(self, model: ModelConfiguration, role: str, compute: ComputeConfiguration) -> LanguageModel:
        """A role on this base that is not trained; roles of the same weights share what they recall."""
        recall = self.recalls.setdefault(model.adapter, Recall())
        if model.adapter is None:
            return LanguageModel(self.model, self.files, self._adapters_off, compute, recall)
        if model.adapter not in self.adapters:
            # The tester's own adapter moves on while it trains, so a frozen role on it needs a copy.
            adapter = _lora_adapter(model.adapter)
            with _peft_asks_by_old_names():
                if self.peft is None:
                    self.peft = PeftModel.from_pretrained(self.model, adapter, role)
                else:
                    self.peft.load_adapter(adapter, role)
            _check_fits(adapter, self.peft, role)
            self.peft.eval()
            self.adapters[model.adapter] = role
        name = self.adapters[model.adapter]
        return LanguageModel(self.model, self.files, lambda: self._adapter_on(name), compute, recall)

    @contextmanager
    def _adapters_off(self) -> Iterator[None]:
        try:
            with nullcontext() if self.peft is None else self.peft.disable_adapter():
                yield
        finally:
            if not self.trains_adapter:
                # PEFT lets an adapter that it switches on again be trained.
                self.model.requires_grad_(False)

    @contextmanager
    def _adapter_on(self, name: str) -> Iterator[None]:
        assert self.peft is not None
        self.peft.set_adapter(name, inference_mode=True)
        try:
            yield
        finally:
            if self.trains_adapter:
                self.peft.set_adapter(TESTER_ADAPTER)


@contextmanager
def _peft_asks_by_old_names() -> Iterator[None]:
    """Silence what transformers says to PEFT, not to us, about a renamed attribute."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _lora_adapter(adapter: str) -> str:
    """The adapter's own name, once it is sure that it works inside the layers, as the roles' switches need."""
    kind = PeftConfig.from_pretrained(adapter).peft_type
    if kind != PeftType.LORA:
        raise ValueError(f"the adapter {adapter} is of type {kind.value}; expected LORA")
    return adapter


def _check_fits(adapter: str, peft: PeftModel, name: str) -> None:
    """Find an adapter of other layers: PEFT warns at most, and the model would go on without what is missing."""
    saved = {key for key in load_peft_weights(adapter, device="cpu") if "lora_" in key}
    there = set(get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False))
    missing, unknown = sorted(there - saved), sorted(saved - there)
    if missing or unknown:
        raise ValueError(
            f"the adapter {adapter} does not fit its model: it lacks {len(missing)} of {len(there)} tensors and has "
            f"{len(unknown)} that have no place there, such as {(missing + unknown)[0]}"
        )


def _load_base(
    files: ModelFiles, model: ModelConfiguration, device: torch.device | str, in_full: bool = False
) -> _Base:
    return _Base(files.load(_dtype(model, device, in_full), device, model.quantization), files)


def _dtype(model: ModelConfiguration, device: torch.device | str, in_full: bool) -> torch.dtype | str:
    if model.dtype != "auto":
        return getattr(torch, model.dtype)
    return torch.float32 if in_full or torch.device(device).type == "cpu" else "auto"


def _key(model: ModelConfiguration, device: torch.device | str) -> tuple[Any, ...]:
    return (model.path, model.revision, model.quantization, _dtype(model, device, in_full=False))
