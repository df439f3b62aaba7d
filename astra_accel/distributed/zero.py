"""The engine of DeepSpeed's ZeRO: each process has a flat piece of optimizer state, at stage 3 also of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

from astra_accel.config import TrainingConfiguration
from astra_accel.distributed.engine import Engine, Named, UpdateCheck
from astra_accel.distributed.fsdp import without_hooks
from astra_accel.distributed.op_builds import build_for_offload
from astra_accel.distributed.step_module import StepModule

OFFLOADED_OPTIMIZERS = ("adam", "adamw", "adagrad")
"""The optimizers that DeepSpeed can run on the host."""


class ZeROEngine(Engine):
    """See :class:`~astra_accel.distributed.engine.Engine`."""

    sharded = True

    def __init__(
        self,
        accelerator: Accelerator,
        module: StepModule,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfiguration,
    ) -> None:
        self._scheduled = optimizer.param_groups  # whose learning rate the schedule moves
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._group_sizes = [len(group["params"]) for group in optimizer.param_groups]
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings.update(_filled(config, accelerator.num_processes))
        if _offload_device(settings) != "none":
            build_for_offload(config.optimizer)
        add_gradients_in_float32(settings)
        super().__init__(accelerator, module, optimizer, config)
        self._zero = self.prepared.optimizer
        self._whole_on_each = self.prepared.zero_optimization_stage() < 3
        if getattr(self._zero, "cpu_offload", False):
            # The number of steps of an update depends on its tokens, and DeepSpeed accumulates only if it expects
            # several.
            self._zero.gradient_accumulation_steps = max(2, config.gradient_accumulation_steps)

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradient of a weighted loss. In an update's last one, Accelerate has DeepSpeed step as well."""
        for own, scheduled in zip(self._zero.optimizer.param_groups, self._scheduled, strict=True):
            own["lr"] = scheduled["lr"]
        # Only the average over processes is undone: the loss is not divided by the number of micro-batches.
        self.accelerator.backward(loss * self.accelerator.num_processes, scale_wrt_gas=False)

    def step(self, max_norm: float | None, check: UpdateCheck) -> float:  # noqa: ARG002
        """Return the norm of the gradient before clipping.

        DeepSpeed has already stepped, unless the norm was not finite; its own configuration makes it clip to
        ``max_norm``.
        """
        norm = float(self.prepared.get_global_grad_norm())
        if not self.prepared.fp16_enabled():  # the loss scaler handles overflows
            check(norm)
        return norm

    @contextmanager
    def unsharded_weights(self) -> Iterator[None]:
        """Gather the weights at stage 3; at stages 1 and 2 every process has them whole."""
        if self._whole_on_each:
            yield
        else:
            with deepspeed.zero.GatheredParameters(list(self.module.parameters())), without_hooks(self.module):
                yield

    def shape(self, own: torch.Tensor) -> torch.Size:
        """The unsharded shape of a trained weight, which stage 3 leaves empty in between."""
        return getattr(own, "ds_shape", own.shape)

    def trained_state(self) -> Iterator[Named]:
        """Each trained weight in float32, whatever the type of the forward."""
        for name, tensor in self.module.trained_state().items():
            yield name, safe_get_full_fp32_param(tensor) if tensor.requires_grad else tensor

    def load_trained_state(self, saved: Iterable[Named]) -> None:
        """Load each weight, and the float32 copy of it that the optimizer steps on."""
        own = self.module.trained_state()
        with torch.no_grad():
            for name, tensor in saved:
                if not own[name].requires_grad:
                    own[name].copy_(tensor)
                elif self._whole_on_each:
                    own[name].copy_(tensor)
                    safe_set_full_fp32_param(own[name], tensor.to(self.accelerator.device))
                else:
                    with deepspeed.zero.GatheredParameters([own[name]], modifier_rank=0):
                        own[name].copy_(tensor)
                    safe_set_local_fp32_param(own[name], self._piece(tensor, own[name]))

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The groups with the parameters' own numbers, as DeepSpeed's optimizer has one flat tensor a group."""
        groups, first = [], 0
        for group, size in zip(self._zero.optimizer.param_groups, self._group_sizes, strict=True):
            groups.append({**group, "params": list(range(first, first + size))})
            first += size
        return groups

    def optimizer_state(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each parameter's state. Values without its size, such as a count of steps, are the same for all."""
        states = self._zero.optimizer.state
        if not states:
            return
        state = next(iter(states.values()))
        names = [name for name, value in state.items() if _is_per_parameter(value)]
        common = {name: value for name, value in state.items() if name not in names}
        for index, parameter in enumerate(self._parameters):
            # Copied for each: a tensor shared in a file is loaded as shared, and each parameter would increment it.
            yield index, _copied(common) | {name: safe_get_full_optimizer_state(parameter, name) for name in names}

    def load_optimizer(self, groups: list[dict[str, Any]], state: Mapping[int, dict[str, Any]]) -> None:
        """Load the groups, also into those that the schedule changes, and this process's part of the state."""
        for own, scheduled, saved in zip(self._zero.optimizer.param_groups, self._scheduled, groups, strict=True):
            for group in (own, scheduled):
                group.update({name: value for name, value in saved.items() if name != "params"})
        if not state:
            return
        names = self._make_states(next(iter(state.values())))
        for index, values in state.items():
            parameter = self._parameters[index]
            for name in names:
                value = values[name].to(self.accelerator.device)
                if self._whole_on_each:
                    safe_set_full_optimizer_state(parameter, value, name)
                else:
                    safe_set_local_optimizer_state(parameter, self._piece(value, parameter), name)

    def _make_states(self, example: Mapping[str, Any]) -> list[str]:
        """Give each flat piece a state before its first step; returns the names of the entries to fill."""
        names = [name for name, value in example.items() if _is_per_parameter(value)]
        common = {name: value for name, value in example.items() if name not in names}
        if "step" in common:
            count = float(common["step"])
            # The optimizers that DeepSpeed runs on the host count in Python, torch's in a tensor.
            counts_in_python = type(self._zero.optimizer).__module__.startswith("deepspeed.")
            common["step"] = int(count) if counts_in_python else torch.tensor(count)
        for piece in self._pieces():
            state = self._zero.optimizer.state[piece]
            state.update(_copied(common))
            for name in names:
                state.setdefault(name, torch.zeros_like(piece))
        if self._whole_on_each:
            self._zero._lazy_init_hp_params_optimizer_state()
        return names

    def _pieces(self) -> Sequence[torch.Tensor]:
        """The float32 tensors that the optimizer steps on."""
        # Of stages 1 and 2; of stage 1 if the forward is in bf16 and gradients are summed in float32; of stage 3.
        names = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
        return next(getattr(self._zero, name) for name in names if hasattr(self._zero, name))

    def _piece(self, whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """This process's piece of a parameter at stage 3: the parameter is cut into equal runs, the last one padded."""
        length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = whole.new_zeros(length * self.accelerator.num_processes)
        padded[: whole.numel()] = whole.flatten()
        return padded.narrow(0, length * self.accelerator.process_index, length).to(self.accelerator.device)


def check_deepspeed(accelerator: Accelerator, config: TrainingConfiguration) -> None:
    """Reject a DeepSpeed configuration that leaves entries open, or contradicts the run's.

    Raises:
        ValueError: an entry is missing or differs; names it.
    """
    plugin = accelerator.state.deepspeed_plugin
    settings = plugin.deepspeed_config
    for section, field in (("optimizer", "optimizer"), ("scheduler", "lr_scheduler")):
        if section in settings:
            raise ValueError(
                f"the DeepSpeed configuration has a section {section!r}; expected none, since training.{field} says it"
            )
    if plugin.zero3_init_flag:
        raise ValueError(
            "zero3_init_flag is true in the DeepSpeed configuration, which would shard the weights of frozen models "
            "that nobody gathers; expected false"
        )
    offload = _offload_device(settings)
    if offload != "none" and config.optimizer not in OFFLOADED_OPTIMIZERS:
        raise ValueError(
            f"training.optimizer is {config.optimizer!r}, for which Accelerate would take Adam where the DeepSpeed "
            f"configuration offloads the optimizer (to {offload}); expected one of {', '.join(OFFLOADED_OPTIMIZERS)}, "
            f"or offload_optimizer_device: none"
        )
    filled = _filled(config, accelerator.num_processes)
    for name, value in _entries(settings):
        if value == "auto" and name not in filled:
            raise ValueError(f"{name} is auto in the DeepSpeed configuration, and nothing fills it; expected a value")
        if value != "auto" and value != filled.get(name, value):
            raise ValueError(
                f"{name} is {value} in the DeepSpeed configuration, but {filled[name]} follows from training; expected "
                f"auto, or the same"
            )


def _offload_device(settings: Mapping[str, Any]) -> str:
    """The device on which the optimizer steps; ``none`` is that of the weights."""
    return (settings.get("zero_optimization", {}).get("offload_optimizer") or {}).get("device", "none")


def _filled(config: TrainingConfiguration, num_processes: int) -> dict[str, Any]:
    """The entries of a DeepSpeed configuration that follow from the run's."""
    per_process = config.batch_size // num_processes
    return {
        "train_micro_batch_size_per_gpu": per_process,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "train_batch_size": per_process * num_processes * config.gradient_accumulation_steps,
        "gradient_clipping": 0.0 if config.max_grad_norm is None else config.max_grad_norm,
    }


def add_gradients_in_float32(settings: dict[str, Any]) -> None:
    """Sum gradients in float32, over processes and over steps, unless a configuration says otherwise.

    DeepSpeed would use the type of the forward, and a bf16 number with its 8 bits loses what is 1/256 of it. With the
    optimizer on the host at stage 1 or 2, it sums the steps of an update in buffers of the forward's type whatever the
    configuration says; there, only the sum over processes is in float32.
    """
    if settings.get("communication_data_type") is None:
        settings["communication_data_type"] = "fp32"
    zero = settings.get("zero_optimization", {})
    offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    if zero.get("stage") == 3 or not offloaded:
        types = settings["data_types"] = dict(settings.get("data_types") or {})
        if types.get("grad_accum_dtype") is None:
            types["grad_accum_dtype"] = "fp32"


def _entries(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def _is_per_parameter(value: Any) -> bool:
    """Whether a value of an optimizer's state has one number per element of the parameter, unlike a count of steps."""
    return isinstance(value, torch.Tensor) and value.dim() > 0
