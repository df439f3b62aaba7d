"""Which parts of a model a forward on text reaches, found by running one.

A multimodal model has towers that no text enters, some layers are never called because another one reads their weights
(Mamba's ``dt_proj``), and routers choose among experts. An adapter is of no use in any of them, and processes that
average gradients wait for a gradient of each trained parameter. Names do not show this reliably; a forward does.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.pytorch_utils import Conv1D

NUM_TOKENS = 16


def adaptable_layers(model: Any) -> tuple[list[str], frozenset[str]]:
    """The linear layers that a forward on text calls and differentiates through, and the routers among them.

    A layer is a router if an integer is made from its output and used (top-k); what follows from that choice has no
    gradient with respect to the layer.

    Args:
        model: a transformers model without adapters.

    Returns:
        The names of the layers, in the model's order, including the output layer, and the names of the routers among
        them.
    """
    layers = {name: module for name, module in model.named_modules() if is_linear(module)}
    outputs: dict[str, list[torch.Tensor]] = {}
    choices = _Choices(layers)

    def called(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensors = [tensor for tensor in tree_leaves(output) if isinstance(tensor, torch.Tensor)]
            outputs.setdefault(name, []).extend(tensor for tensor in tensors if tensor.requires_grad)
            choices.comes_of(tensors[0], name)

        return hook

    hooks = [module.register_forward_hook(called(name)) for name, module in layers.items()]
    try:
        with torch.enable_grad(), _all_differentiable(model), choices:
            total = _text_logits(model).float().sum()
        flat = [(name, output) for name, found in outputs.items() for output in found]
        gradients = torch.autograd.grad(total, [output for _, output in flat], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    reached = {name for (name, _), gradient in zip(flat, gradients, strict=True) if gradient is not None}
    return [name for name in layers if name in reached], frozenset(choices.choosing & reached)


def freeze_unreached(model: Any) -> list[torch.nn.Parameter]:
    """Freeze the trained parameters on which the logits of a text do not depend; returns those that it froze.

    The graph of one forward holds all others. No gradient is computed, so this takes hardly any memory. A model on the
    meta device can't run, and is left unchanged.
    """
    if model.device.type == "meta":
        return []
    with torch.enable_grad():
        reached = {id(leaf) for leaf in _leaves(_text_logits(model))}
    frozen = [one for one in model.parameters() if one.requires_grad and id(one) not in reached]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module is a linear layer, including GPT-2's kind."""
    return isinstance(module, torch.nn.Linear | Conv1D)


def text_ids(model: Any) -> torch.Tensor:
    """A few ordinary tokens ``[1, tokens]``: none that its configuration lists as special (end of text, image)."""
    special = set(_special_ids(model.config.to_dict()))
    size = min(model.get_input_embeddings().weight.shape[0], model.config.get_text_config().vocab_size)
    ordinary = [token for token in range(min(size, 1024)) if token not in special]
    return torch.tensor([random.Random(0).choices(ordinary, k=NUM_TOKENS)], device=model.device)


def _text_logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=text_ids(model), use_cache=False).logits
    return logits


def _special_ids(config: dict[Any, Any]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _special_ids(value)
        elif str(name).endswith(("token_id", "token_index")):
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))


@contextmanager
def _all_differentiable(model: Any) -> Iterator[None]:
    """Within, every parameter that can have a gradient requires one."""
    changed = [one for one in model.parameters() if one.is_floating_point() and not one.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(False)


def _leaves(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    """The leaves of the graph that a tensor was computed in."""
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting.extend(following for following, _ in node.next_functions)


_PRODUCTS = ("linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "_grouped_mm", "grouped_mm")


class _Choices(TorchFunctionMode):
    """Follows the outputs of linear layers, up to the next product, and finds those that integers are made from.

    Attributes:
        choosing: names of layers whose output was turned to an integer that something used.
    """

    def __init__(self, layers: dict[str, torch.nn.Module]) -> None:
        super().__init__()
        self.choosing: set[str] = set()
        # A layer may choose within its own forward, before a hook sees its output.
        self._by_weight = {id(module.weight): name for name, module in layers.items()}
        self._sources: Any = WeakTensorKeyDictionary()
        self._chosen: Any = WeakTensorKeyDictionary()

    def comes_of(self, output: torch.Tensor, layer: str) -> None:
        """Record that a layer computed this output."""
        self._sources[output] = frozenset([layer])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        for one in given:
            self.choosing |= self._chosen.get(one, frozenset())
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor):
                self._follow(getattr(func, "__name__", ""), given, made)
        return result

    def _follow(self, name: str, given: list[torch.Tensor], made: torch.Tensor) -> None:
        sources: frozenset[str] = frozenset()
        if name in _PRODUCTS:
            sources = frozenset(self._by_weight[id(one)] for one in given if id(one) in self._by_weight)
        else:
            sources = sources.union(*(self._sources.get(one, frozenset()) for one in given))
        if made.is_floating_point():
            self._sources[made] = sources
        elif made.dtype in (torch.int64, torch.int32):
            self._chosen[made] = sources
