"""What a model does between its body and its logits, found out from a forward of its own.

The body's output is compared with what the output layer gets. In place of what that layer gives, the model is handed
numbers of our own, in float32 and over a wide range, and what it makes of them is compared with the forms that are
known: a factor and a soft cap whose sizes the configuration names. So neither a name, nor the precision of the weights,
nor the size of the logits that they happen to give can mislead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch

from astra_accel.models.support import UnsupportedModelError, check_sequences

Key = TypeVar("Key", bound=Hashable)

FACTOR_NAMES = re.compile(r"logit|lm_head")
"""What a factor of the logits is called: Cohere's ``logit_scale``, Granite's, HyperCLOVA X's and MiniCPM's
``logits_scaling``, Falcon-H1's ``lm_head_multiplier``."""

CAP_NAMES = re.compile(r"logit.*cap")
"""What a soft cap is called: Gemma's ``final_logit_softcapping``, Griffin's ``logits_soft_cap``."""


class OutputForm(NamedTuple):
    """How logits follow from the body's output: ``cap(scale * linear(hidden))``, of the first ``num_logits`` tokens.

    Attributes:
        scale: the factor, be it on the layer's input or on its output.
        softcap: the cap's size, None without one.
        num_logits: rows of the layer that count; those behind fill its size up.
    """

    scale: float
    softcap: float | None
    num_logits: int


@dataclass(frozen=True)
class OutputLayer:
    """What was found out about a model's output.

    Attributes:
        layer: the module that makes logits; None where the model names none.
        form: how they follow from the body's output; None where they follow otherwise.
        reason: why there is no form.
        width: of what the layer gets; None where the forward did not call it.
    """

    layer: Any
    form: OutputForm | None
    reason: str
    width: int | None


_found: WeakKeyDictionary[torch.nn.Module, OutputLayer] = WeakKeyDictionary()


def find_output_layer(model: Any) -> OutputLayer:
    """What a transformers model does between body and logits; found out once, before its weights are spread."""
    known = _found.get(model)
    if known is None or known.layer is not output_layer_of(model):
        known = _found[model] = _observed(model)
    return known


def output_layer_of(model: Any) -> Any:
    """The module that makes logits, None where the model names none."""
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def state_width(model: Any) -> int:
    """The size of the states that a model makes its logits of, which values are read from.

    Raises:
        UnsupportedModelError: no forward of the model shows them.
    """
    found = find_output_layer(model)
    if found.width is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} shows no states that values could be read from: {found.reason}; expected an "
            f"output layer (get_output_embeddings) that its forward calls once"
        )
    return found.width


class LayerInput:
    """What an output layer gets.

    Attributes:
        states_BTH: of the last call within :meth:`watched`; None where there was none.
    """

    def __init__(self) -> None:
        self.states_BTH: torch.Tensor | None = None

    @contextmanager
    def watched(self, layer: Any) -> Iterator[None]:
        """Within, calls of the layer are seen."""
        if layer is None:
            yield
            return
        handle = layer.register_forward_pre_hook(self._keep)
        try:
            yield
        finally:
            handle.remove()

    def _keep(self, layer: Any, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002
        self.states_BTH = inputs[0] if inputs else None


class _Replaced:
    """A forward hook that hands out numbers of its own in place of a layer's output.

    Attributes:
        given: what it handed out, by call.
    """

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []

    def __call__(self, layer: Any, inputs: Any, output: Any) -> Any:  # noqa: ARG002
        if not isinstance(output, torch.Tensor):
            return output
        sign, size = torch.rand(2, *output.shape, generator=torch.Generator().manual_seed(0))
        # From a hundredth to a hundred: the slope of a cap shows as its limit does.
        numbers = (torch.where(sign < 0.5, -1.0, 1.0) * 10 ** (4 * size - 2)).to(output.device)
        self.given.append(numbers)
        return numbers.clone()


def _observed(model: Any) -> OutputLayer:
    layer, got, replaced = output_layer_of(model), LayerInput(), _Replaced()
    try:
        # In the weights' own precision: what autocast rounds is not what the comparison is about.
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            form = _form(model, layer, got, replaced)
    except torch.OutOfMemoryError:
        raise
    except UnsupportedModelError as error:
        form, reason = None, str(error)
    except Exception as error:
        form, reason = None, f"{type(error).__name__}: {error}"
    else:
        reason = ""
    return OutputLayer(layer, form, reason, None if got.states_BTH is None else got.states_BTH.shape[-1])


def _form(model: Any, layer: Any, got: LayerInput, replaced: _Replaced) -> OutputForm:
    """How a model's logits follow from its body's output.

    Raises:
        UnsupportedModelError: in none of the known forms.
    """
    ids_1T = torch.tensor(check_sequences(model)[0][:1], device=model.device)
    with got.watched(layer), _hooked(layer, replaced):
        logits_BTV = model(input_ids=ids_1T, use_cache=False).logits
    if type(layer) is not torch.nn.Linear:
        raise UnsupportedModelError("its output layer is not a plain linear layer")
    if len(replaced.given) != 1 or got.states_BTH is None:
        raise UnsupportedModelError(f"its forward calls its output layer {len(replaced.given)} times")
    config = model.config.get_text_config()
    factors = [1.0, *(each for value in _numbers(config, FACTOR_NAMES) for each in (value, 1 / value))]
    body_BTH = model.base_model(input_ids=ids_1T, use_cache=False)[0].float()
    before = _nearest({factor: body_BTH * factor for factor in factors}, got.states_BTH, _distance)
    if model.base_model is model or before is None or (before != 1 and layer.bias is not None):
        raise UnsupportedModelError("what its output layer gets is not its body's output")
    given_BTV = replaced.given[0][..., : logits_BTV.shape[-1]]
    caps = [None, *_numbers(config, CAP_NAMES)]
    made = {(factor, cap): capped(given_BTV * factor, cap) for factor, cap in product(factors, caps)}
    after = _nearest(made, logits_BTV, _largest_error)
    if after is None:
        raise UnsupportedModelError("its logits are not those of its output layer, scaled and capped")
    factor, cap = after
    return OutputForm(before * factor, cap, logits_BTV.shape[-1])


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """``softcap * tanh(logits / softcap)``, or the logits as they are without a cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@contextmanager
def _hooked(layer: Any, hook: _Replaced) -> Iterator[None]:
    if layer is None:
        yield
        return
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _numbers(config: Any, names: re.Pattern[str]) -> list[float]:
    """The positive numbers that a configuration keeps under such names, or computes."""
    computed = [name for name in dir(type(config)) if isinstance(getattr(type(config), name), property)]
    values = [getattr(config, name, None) for name in dict.fromkeys([*vars(config), *computed]) if names.search(name)]
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return list(dict.fromkeys(value for value in numbers if value > 0))


def _nearest(
    candidates: Mapping[Key, torch.Tensor],
    found: torch.Tensor,
    error: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Key | None:
    """Which candidate is what was found but for what its type rounds; None if none is."""
    allowed = max(1e-5, 4 * torch.finfo(found.dtype).eps)
    same_shape = {key: expected for key, expected in candidates.items() if expected.shape == found.shape}
    errors = {key: error(expected, found.float()).item() for key, expected in same_shape.items()}
    key = min(errors, key=lambda each: errors[each] if math.isfinite(errors[each]) else math.inf, default=None)
    return key if key is not None and errors[key] <= allowed else None


def _distance(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Of two results of the same layers, whose numbers near 0 are sums that cancel."""
    return (expected - found).norm() / expected.norm()


def _largest_error(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Of numbers that were computed one by one: a cap is seen in the slope of the small and the limit of the large."""
    return ((expected - found).abs() / expected.abs()).max()
