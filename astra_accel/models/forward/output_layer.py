"""What a model does between its body and its logits, found by running a forward.

The body's output is compared with the output layer's input. The layer's output is replaced with known numbers, in
float32 and over a wide range, and the resulting logits show what the model does: whether it multiplies them, and by
what (Cohere's ``logit_scale``; ``logits_scaling``, which HyperCLOVA X multiplies by and Granite divides by; Falcon-H1's
``lm_head_multiplier``), whether a soft cap follows (Gemma's, Griffin's), and which tokens count. So no name in a
configuration, precision of the weights or size of the logits can mislead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from astra_accel.models.forward.capabilities import UnsupportedModelError, check_sequences
from astra_accel.models.forward.padded import body_of

SMALL, LARGE = 2.0**-13, 2.0**27
"""Two of the numbers: one that a cap leaves unchanged, and one that becomes the cap itself."""

TOLERANCE = 1e-5
"""The relative tolerance for what is computed in float32 in another order."""


class OutputForm(NamedTuple):
    """How logits follow from the body's output: ``cap(scale * linear(hidden))``, for the first ``num_logits`` tokens.

    Attributes:
        scale: the factor, whether on the layer's input or on its output.
        softcap: the cap's size; None without a cap.
        num_logits: the number of rows of the layer that count; those after are padding.
    """

    scale: float
    softcap: float | None
    num_logits: int


@dataclass(frozen=True)
class OutputLayer:
    """What was found about a model's output.

    Attributes:
        layer: the module that makes logits; None if the model names none.
        form: how logits follow from the body's output; None if in an unknown way.
        reason: why there is no form.
        width: the width of the layer's input; None if the forward did not call it.
    """

    layer: Any
    form: OutputForm | None
    reason: str
    width: int | None


_found: WeakKeyDictionary[torch.nn.Module, OutputLayer] = WeakKeyDictionary()


def find_output_layer(model: Any) -> OutputLayer:
    """What a transformers model does between body and logits; checked once, before its weights are sharded."""
    known = _found.get(model)
    if known is None or known.layer is not output_layer_of(model):
        known = _found[model] = _observed(model)
    return known


def output_layer_of(model: Any) -> Any:
    """The module that makes logits; None if the model names none."""
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def state_width(model: Any) -> int:
    """The size of the states that a model computes its logits from, which values are read from.

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
    """Records the input of an output layer.

    Attributes:
        states_BTH: the input of the last call within :meth:`watched`; None if there was none.
    """

    def __init__(self) -> None:
        self.states_BTH: torch.Tensor | None = None

    @contextmanager
    def watched(self, layer: Any) -> Iterator[None]:
        """Within, calls of the layer are recorded."""
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
    """A forward hook that replaces a layer's output with its own numbers.

    Attributes:
        given: the numbers of each call.
    """

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []

    def __call__(self, layer: Any, inputs: Any, output: Any) -> Any:  # noqa: ARG002
        if not isinstance(output, torch.Tensor):
            return output
        sign, size = torch.rand(2, *output.shape, generator=torch.Generator().manual_seed(0))
        # From a hundredth to a hundred, so that a cap shows both in its slope and in its limit.
        numbers = torch.where(sign < 0.5, -1.0, 1.0) * 10 ** (4 * size - 2)
        numbers[..., 0], numbers[..., 1] = SMALL, LARGE
        self.given.append(numbers.to(output.device))
        return self.given[-1].clone()


def _observed(model: Any) -> OutputLayer:
    layer, got, replaced = output_layer_of(model), LayerInput(), _Replaced()
    try:
        # In the weights' own precision: the comparison is not about what autocast rounds.
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
        UnsupportedModelError: they follow in none of the known forms.
    """
    ids_1T = torch.tensor(check_sequences(model)[0][:1], device=model.device)
    with got.watched(layer), _hooked(layer, replaced):
        logits_BTV = model(input_ids=ids_1T, use_cache=False).logits
    if layer is None:
        raise UnsupportedModelError("it names no output layer")
    if type(layer) is not torch.nn.Linear:
        raise UnsupportedModelError("its output layer is not a plain linear layer")
    if len(replaced.given) != 1 or got.states_BTH is None:
        raise UnsupportedModelError(f"its forward calls its output layer {len(replaced.given)} times")
    body = body_of(model)
    before = None if body is model else _factor(body(input_ids=ids_1T, use_cache=False)[0], got.states_BTH)
    if before is None or (before != 1 and layer.bias is not None):
        raise UnsupportedModelError("what its output layer gets is not its body's output")
    scale, softcap = _scale_and_cap(replaced.given[0][..., : logits_BTV.shape[-1]], logits_BTV)
    return OutputForm(before * scale, softcap, logits_BTV.shape[-1])


def _factor(body_BTH: torch.Tensor, states_BTH: torch.Tensor) -> float | None:
    """The factor from the body's output to the output layer's input; None if they differ otherwise."""
    if body_BTH.shape != states_BTH.shape:
        return None
    allowed = max(TOLERANCE, 2 * torch.finfo(states_BTH.dtype).eps)
    body, states = body_BTH.double(), states_BTH.double()
    for factor in (1.0, float((body * states).sum() / (body * body).sum())):
        if (states - factor * body).norm() <= allowed * states.norm():  # NaN is not
            return factor
    return None


def _scale_and_cap(given_BTV: torch.Tensor, logits_BTV: torch.Tensor) -> tuple[float, float | None]:
    """The factor and the cap that a model applies to its output layer's numbers.

    Raises:
        UnsupportedModelError: it rounds or ignores them, or does more than multiply and cap them.
    """
    scale, limit = (float(value) for value in logits_BTV[0, 0, :2].double())
    scale /= SMALL
    softcap = None if abs(limit / LARGE - scale) <= TOLERANCE * abs(scale) else limit
    scale = 1.0 if abs(scale - 1) <= TOLERANCE / 10 else scale
    if logits_BTV.dtype != torch.float32 or scale == 0 or softcap == 0:
        raise UnsupportedModelError("its logits are rounded, or do not depend on its output layer")
    expected_BTV = capped(given_BTV * scale, softcap)
    if not ((expected_BTV - logits_BTV).abs() <= TOLERANCE * expected_BTV.abs()).all():
        raise UnsupportedModelError("its logits are not those of its output layer, scaled and capped")
    return scale, softcap


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """``softcap * tanh(logits / softcap)``, or the unchanged logits without a cap."""
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
