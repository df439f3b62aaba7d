"""Tester, target and baseline, on as few copies of the weights as possible.

A base model that several roles name is loaded once. The tester is base + its adapter; a frozen role on the same
base is the base with that adapter off, or with an adapter of its own switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from astra_accel.config import ComputeConfiguration, LoRAConfiguration, ModelConfiguration, TargetConfiguration
from astra_accel.endpoints.client import EndpointClient
from astra_accel.endpoints.endpoint import Endpoint
from astra_accel.models.decoding.token_sampling import naming_role
from astra_accel.models.forward.capabilities import transformers_model
from astra_accel.models.language_model import LanguageModel
from astra_accel.models.layers.lora_linear import fuse_adapters
from astra_accel.models.layers.merged_adapter import can_merge, merged_adapter
from astra_accel.models.loading.adapter_files import check_adapter_files
from astra_accel.models.loading.adapter_targets import new_adapter_config
from astra_accel.models.loading.embedding_rows import configured_rows, embedding_rows
from astra_accel.models.loading.model_files import ModelFiles, check_lora_targets, find_model, same_tokenizer
from astra_accel.models.loading.precision import with_dtypes
from astra_accel.models.loading.quantization import check_device, check_quantization
from astra_accel.models.loading.saved_adapters import load_adapter, peft_asks_by_old_names, share_a_base
from astra_accel.models.loading.text_forward import freeze_unreached
from astra_accel.models.logprobs import can_pack
from astra_accel.models.memory import return_freed_memory
from astra_accel.models.recall import LogprobCache

TESTER_ADAPTER = "default"


@dataclass
class Roles:
    """The three roles, and the module that is trained.

    Attributes:
        trained: the module that is trained: a PEFT model, or the tester itself.
        merges: whether the tester's adapter is merged for rollouts.
        in_rollout: whether a rollout is running.
        at_rest: returns the tester's weights that are frozen because no text reaches them, by their names in
            ``trained``.
    """

    tester: LanguageModel
    target: LanguageModel
    baseline: LanguageModel
    trained: Any
    merges: bool = False
    in_rollout: bool = field(default=False, init=False)
    at_rest: Callable[[], dict[str, torch.Tensor]] = dict
    _num_rollouts: int = field(default=0, init=False)

    @contextmanager
    def rolling_out(self, num_turns: int | None = None) -> Iterator[None]:
        """Run a rollout within, during which no weights change: each turn's contexts extend those of the turn before.

        Log-probs of frozen roles are stored until the next rollout.

        Args:
            num_turns: the number of turns of the rollout; None if unknown.
        """
        caches = [role.recall for role in (self.target, self.baseline) if role.recall is not None]
        for cache in caches:
            cache.clear()
        return_freed_memory(self.target.model.device)
        self._num_rollouts += 1
        self.tester.generator.take_weights(self._num_rollouts)
        for role in (self.tester, self.target):
            role.generator.begin(num_turns)
        switch = self.tester.switch
        if self.merges:
            self.tester.switch = merged_adapter(self.tester.model, TESTER_ADAPTER) or switch
        self.in_rollout = True
        try:
            yield
        finally:
            self.in_rollout = False
            self.tester.switch = switch
            for cache in caches:
                cache.forget_rounded()
            for role in (self.tester, self.target):
                role.generator.end()


@dataclass(frozen=True)
class RoleFiles:
    """The three models before their weights load.

    Attributes:
        endpoint: asks the target, if it is not loaded. What is in its place is the baseline: nothing is known
            of the target's tokens, so conversations are read in the tester's.
    """

    tester: ModelFiles
    target: ModelFiles
    baseline: ModelFiles
    configurations: dict[str, ModelConfiguration]
    lora: LoRAConfiguration | None
    endpoint: EndpointClient | None = None

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
        FileNotFoundError, ValueError: as in :func:`~astra_accel.models.loading.model_files.find_model`; or the baseline
            does not share the tester's tokenizer, or can't read the tester's end-of-turn token; or LoRA's targets match
            nothing; or an adapter can't be switched off and on; or a 4-bit tester is to be trained in full; or a model
            to be quantised already is.
        ImportError: a model is to be quantised, and bitsandbytes is not installed; or the target is behind an endpoint,
            and openai is not.
    """
    baseline = tester if baseline is None else baseline
    endpoint = _endpoint(target)
    target = target if endpoint is None else baseline
    found: dict[tuple[str, str | None, bool], ModelFiles] = {}
    configurations = {"tester": tester, "target": target, "baseline": baseline}
    for role, model in configurations.items():
        if _source(model) not in found:
            found[_source(model)] = find_model(model, role)
    files = {role: found[_source(model)] for role, model in configurations.items()}
    for role, model in configurations.items():
        check_quantization(model, role, files[role].config)
        if model.adapter is not None:
            check_adapter_files(
                model.adapter,
                f"{role}.adapter",
                files[role].config,
                model.path,
                trust_remote_code=model.trust_remote_code,
            )
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
    _check_ends(files["tester"], files["baseline"])
    if lora is not None and tester.adapter is None:
        check_lora_targets(lora, files["tester"])
    return RoleFiles(**files, configurations=configurations, lora=lora, endpoint=endpoint)


def _endpoint(target: ModelConfiguration) -> EndpointClient | None:
    if not isinstance(target, TargetConfiguration) or target.endpoint is None:
        return None
    return EndpointClient(Endpoint.from_configuration(target), "target")


def _check_ends(tester: ModelFiles, baseline: ModelFiles) -> None:
    """Check that the tester can still end its turn when it samples only ids that the baseline can read."""
    rows = configured_rows(baseline.config)
    if rows is not None and tester.end_ids and min(tester.end_ids) >= rows:
        raise ValueError(
            f"the tester ({tester.source}) ends its turns with the token id {min(tester.end_ids)}, but the baseline "
            f"({baseline.source}) has {rows} embeddings, for ids from 0 to {rows - 1}; expected a baseline that can "
            f"read what the tester writes"
        )


def load_roles(
    files: RoleFiles,
    device: torch.device | str,
    compute: ComputeConfiguration = ComputeConfiguration(),  # noqa: B008
) -> Roles:
    """Load the weights of all roles on a device.

    Raises:
        ValueError: a model is to be quantised but the device can't compute with it, or a model lacks weights.
    """
    files = with_dtypes(files, device, compute)
    for role, model in files.configurations.items():
        check_device(model.quantization, role, device)
    tester = files.configurations["tester"]
    trained_in_full = files.lora is None and tester.adapter is None
    bases: list[_Base] = []
    base = _load_base(files.tester, tester, device)
    if trained_in_full:
        base.train_all()
    else:
        base.adapt(tester.adapter, files.lora)
        bases.append(base)
    frozen = {}
    for role in ("baseline", "target"):
        model = files.configurations[role]
        shared = next((one for one in bases if one.takes(model)), None)
        if shared is None:
            shared = _load_base(getattr(files, role), model, device)
            bases.append(shared)
        frozen[role] = shared.frozen_role(model, role, compute)
    # The baseline must score every id that the tester samples.
    num_ids = embedding_rows(transformers_model(frozen["baseline"].model))
    return Roles(
        tester=LanguageModel(base.model, files.tester, compute=compute, num_ids=num_ids),
        trained=base.model if trained_in_full else base.peft,
        merges=not trained_in_full and _wants_merging(base.model, compute) and can_merge(base.model, TESTER_ADAPTER),
        at_rest=base.at_rest,
        **frozen,
    )


def _wants_merging(model: Any, compute: ComputeConfiguration) -> bool:
    if compute.merge_adapter is not None:
        return compute.merge_adapter
    return model.dtype == torch.float32 or model.device.type == "cpu"


def check_packing(roles: Roles, compute: ComputeConfiguration) -> None:
    """Check that the models can be packed where that is required, and find out about the tester otherwise.

    It is checked once, here: later the weights may be sharded over processes that are not all at the same point.

    Raises:
        ValueError: ``compute.packing`` is prefix_tree, and a model can't be packed.
    """
    if compute.packing == "auto":
        with naming_role("tester"):
            can_pack(transformers_model(roles.tester.model))
    if compute.packing != "prefix_tree":
        return
    for name in ("tester", "target", "baseline"):
        role: LanguageModel = getattr(roles, name)
        try:
            with naming_role(name):
                can_pack(transformers_model(role.model), required=True)
        except ValueError as error:
            raise ValueError(f"compute.packing is prefix_tree, but the {name}'s {error}; use auto") from error


@dataclass
class _Base:
    """One copy of a model's weights, and the adapters on it.

    Attributes:
        key: what was loaded, with which quantization and type.
        trained: the names of the parameters that are trained.
        at_rest: see :class:`Roles`.
    """

    model: Any
    files: ModelFiles
    key: tuple[Any, ...]
    peft: PeftModel | None = None
    trained: frozenset[str] = frozenset()
    at_rest: Callable[[], dict[str, torch.Tensor]] = dict
    adapters: dict[str, str] = field(default_factory=dict)
    recalls: dict[str | None, LogprobCache] = field(default_factory=dict)

    def train_all(self) -> None:
        """Train every weight that a text reaches."""
        self.model.requires_grad_(True)
        idle = self._freeze_unreached(self.model)
        if idle:
            self.at_rest = lambda: _chosen(self.files.load(self.model.dtype).state_dict(), idle)

    def adapt(self, adapter: str | None, lora: LoRAConfiguration | None) -> None:
        """Add the tester's adapter: an existing one to continue training, or a new one."""
        if adapter is not None:
            self.peft = load_adapter(self.model, None, adapter, TESTER_ADAPTER, trained=True)
        else:
            assert lora is not None
            config = new_adapter_config(lora, self.model, self.files.source)
            with peft_asks_by_old_names():
                self.peft = get_peft_model(self.model, config, TESTER_ADAPTER)
        assert self.peft is not None
        self.peft.eval()
        fuse_adapters(self.model)
        idle = _copied(_chosen(self.peft.state_dict(), self._freeze_unreached(self.peft)))
        self.at_rest = lambda: idle

    def takes(self, model: ModelConfiguration) -> bool:
        """Whether a frozen role can use this base with its adapters off, or with one more adapter on."""
        if self.key != _key(model):
            return False
        if model.adapter is None or model.adapter in self.adapters or self.peft is None:
            return True
        return share_a_base(model.adapter, self.peft.peft_config.values(), self.model)

    def frozen_role(self, model: ModelConfiguration, role: str, compute: ComputeConfiguration) -> LanguageModel:
        """A frozen role on this base; roles with the same weights share their stored log-probs."""
        recall = self.recalls.setdefault(model.adapter, LogprobCache())
        if model.adapter is None:
            return LanguageModel(self.model, self.files, self._adapters_off, compute, recall)
        if model.adapter not in self.adapters:
            # The tester's own adapter changes as it trains, so a frozen role with it needs a copy.
            self.peft = load_adapter(self.model, self.peft, model.adapter, role, trained=False)
            self.peft.eval()
            self.adapters[model.adapter] = role
            self._restore_trained()
        name = self.adapters[model.adapter]
        return LanguageModel(self.model, self.files, lambda: self._adapter_on(name), compute, recall)

    @contextmanager
    def _adapters_off(self) -> Iterator[None]:
        try:
            with nullcontext() if self.peft is None else self.peft.disable_adapter():
                yield
        finally:
            self._restore_trained()

    @contextmanager
    def _adapter_on(self, name: str) -> Iterator[None]:
        assert self.peft is not None
        self.peft.set_adapter(name, inference_mode=True)
        try:
            yield
        finally:
            if self.trained:
                self.peft.set_adapter(TESTER_ADAPTER)
            self._restore_trained()

    def _freeze_unreached(self, module: Any) -> frozenset[str]:
        """Freeze what no text reaches, record what is trained; returns the frozen names within ``module``."""
        frozen = {id(parameter) for parameter in freeze_unreached(self.model)}
        self.trained = frozenset(name for name, one in self.model.named_parameters() if one.requires_grad)
        return frozenset(name for name, one in module.named_parameters(remove_duplicate=False) if id(one) in frozen)

    def _restore_trained(self) -> None:
        """Restore what is trained: PEFT makes all of an adapter trainable when it switches it on again."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad != (name in self.trained):
                parameter.requires_grad_(name in self.trained)


def _chosen(state: Mapping[str, torch.Tensor], names: Collection[str]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name in names}


def _copied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _load_base(files: ModelFiles, model: ModelConfiguration, device: torch.device | str) -> _Base:
    dtype = "auto" if model.dtype == "auto" else getattr(torch, model.dtype)
    return _Base(files.load(dtype, device, model.quantization), files, _key(model))


def _source(model: ModelConfiguration) -> tuple[str, str | None, bool]:
    return (model.path, model.revision, model.trust_remote_code)


def _key(model: ModelConfiguration) -> tuple[Any, ...]:
    return (*_source(model), model.quantization, model.dtype)
