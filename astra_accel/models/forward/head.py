"""The output layer of a language model, run only at scored positions, without keeping all logits.

The logits of a few hundred positions are larger than everything else that a forward keeps (88 MB for 448 positions of a
vocabulary of 49152), so they are made in chunks, used, and dropped.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from astra_accel.models.forward.capabilities import UnsupportedModelError
from astra_accel.models.forward.output_layer import capped, find_output_layer
from astra_accel.models.forward.prefix_tree import segment_sum

CHUNK_BYTES = 64 * 2**20


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """``log softmax(logits)[token]`` in float32, without a log-softmax of the size of the logits.

    Args:
        logits: ``[..., vocabulary]``, any float type.
        tokens: ``[...]`` int64.
    """
    logits = logits.float()
    return logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)


@dataclass(frozen=True)
class Head:
    """A linear layer to the vocabulary, and what the model does to its output.

    Attributes:
        linear: the layer.
        scale: the factor that its output is multiplied by.
        softcap: ``softcap * tanh(output / softcap)`` after that (Gemma 2, https://arxiv.org/abs/2408.00118).
        num_logits: the number of tokens that count, the layer's first; those after are padding. None counts all.
        chunk_bytes: the size of the logits made at once, in bytes of float32.
    """

    linear: torch.nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    num_logits: int | None = None
    chunk_bytes: int = CHUNK_BYTES

    @classmethod
    def from_model(cls, model: Any) -> Head | None:
        """The head of a transformers model; None if its logits are not those of a plain linear layer.

        What the model does to them is found by one forward (:mod:`astra_accel.models.forward.output_layer`).
        """
        found = find_output_layer(model)
        return None if found.form is None else cls(cast("torch.nn.Linear", found.layer), *found.form)

    def logits(self, hidden: torch.Tensor, *, called: bool = True) -> torch.Tensor:
        """Float32 logits ``[..., vocabulary]`` of the body's output ``[..., hidden]``.

        Args:
            hidden: the body's output.
            called: whether the layer is called, with its hooks, or its weights are used directly.
        """
        linear = self.linear if called else partial(F.linear, weight=self.linear.weight, bias=self.linear.bias)
        logits = linear(hidden)[..., : self.num_logits].float()
        if self.scale != 1:
            logits = logits * self.scale
        return capped(logits, self.softcap)

    def logprobs(self, hidden_RH: torch.Tensor, rows_E: torch.Tensor, tokens_E: torch.Tensor) -> torch.Tensor:
        """The log-prob of each token at a row of ``hidden_RH``, float32 ``[E]``; several tokens may share a row.

        Memory is that of one chunk, with gradients too: a frozen head's gradient needs a sum over the vocabulary that
        does not depend on later gradients, and is computed at once; a trained head's chunks are recomputed in the
        backward pass if there are several.
        """
        trained = any(parameter.requires_grad for parameter in self.linear.parameters())
        if torch.is_grad_enabled() and trained:
            return self._trained_logprobs(hidden_RH, rows_E, tokens_E)
        return _FrozenHead.apply(hidden_RH, rows_E, tokens_E, self)

    def entropies(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """The entropy of the next token's distribution at each row, in nats, float32 ``[R]``.

        Memory is that of one chunk of logits, which is recomputed in the backward pass.
        """
        parts = [
            checkpoint(self._chunk_entropies, hidden_RH[chunk], use_reentrant=False, preserve_rng_state=False)
            for chunk in self.chunks(len(hidden_RH))
        ]
        return torch.cat(parts)

    def _chunk_entropies(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        return _entropies(self.logits(hidden_RH))

    def chunks(self, num_rows: int) -> list[slice]:
        """The rows, in slices whose logits take about ``chunk_bytes``."""
        size = max(1, self.chunk_bytes // (4 * self.linear.out_features))
        return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]

    def _trained_logprobs(self, hidden_RH: torch.Tensor, rows_E: torch.Tensor, tokens_E: torch.Tensor) -> torch.Tensor:
        chunks = self.chunks(len(hidden_RH))
        parts, places = [], []
        for chunk in chunks:
            edges = _edges_in(chunk, rows_E)
            arguments = (hidden_RH[chunk], rows_E[edges] - chunk.start, tokens_E[edges])
            if len(chunks) == 1:
                return self._chunk_logprobs(*arguments)
            parts.append(checkpoint(self._chunk_logprobs, *arguments, use_reentrant=False, preserve_rng_state=False))
            places.append(edges)
        return torch.cat(parts)[torch.cat(places).argsort()]

    def _chunk_logprobs(self, hidden_RH: torch.Tensor, rows_E: torch.Tensor, tokens_E: torch.Tensor) -> torch.Tensor:
        logits_RV = self.logits(hidden_RH)
        return logits_RV[rows_E, tokens_E] - logits_RV.logsumexp(-1)[rows_E]


@dataclass(frozen=True)
class GivenLogits:
    """Logits that a model computed itself, with the interface of a :class:`Head`, for models without one.

    Attributes:
        logits_RV: ``[rows, vocabulary]``, any float type.
    """

    logits_RV: torch.Tensor

    def logprobs(self, hidden_RH: torch.Tensor, rows_E: torch.Tensor, tokens_E: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See :meth:`Head.logprobs`."""
        return token_logprobs(self.logits_RV[rows_E], tokens_E)

    def entropies(self, hidden_RH: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See :meth:`Head.entropies`."""
        return _entropies(self.logits_RV.float())


def head_of(model: Any) -> Head:
    """The head of a transformers model.

    Raises:
        UnsupportedModelError: its logits are not those of a plain linear layer, or are changed in an unknown way.
    """
    head = Head.from_model(model)
    if head is None:
        raise UnsupportedModelError(find_output_layer(model).reason)
    return head


class _FrozenHead(torch.autograd.Function):
    """Log-probs under a head that gets no gradient.

    With ``z`` the logits of a row, ``w_v`` the head's row of token ``v`` and ``p = softmax(z)``, the gradient of
    ``log p[t]`` with respect to the row's input is ``w_t - sum_v p[v] w_v``. The second term is one vector a row,
    whatever gradients arrive later, so it is computed while the logits exist. With a soft cap, each term carries the
    cap's slope ``1 - (z / softcap)^2``.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_RH: torch.Tensor, rows_E: torch.Tensor, tokens_E: torch.Tensor, head: Head
    ) -> torch.Tensor:
        with _whole(head.linear):
            return _FrozenHead._logprobs(ctx, hidden_RH, rows_E, tokens_E, head)

    @staticmethod
    def _logprobs(
        ctx: Any, hidden_RH: torch.Tensor, rows_E: torch.Tensor, tokens_E: torch.Tensor, head: Head
    ) -> torch.Tensor:
        logprobs_E = torch.empty(len(rows_E), device=hidden_RH.device)
        slope_E = torch.empty_like(logprobs_E)
        mean_RH = torch.zeros_like(hidden_RH) if hidden_RH.requires_grad else None
        for chunk in head.chunks(len(hidden_RH)):
            edges = _edges_in(chunk, rows_E)
            # In its own function, so that none of its logits are kept until the next chunk.
            logprobs_E[edges], slope_E[edges], mean_CH = _FrozenHead._chunk(
                head, hidden_RH[chunk], rows_E[edges] - chunk.start, tokens_E[edges], hidden_RH.requires_grad
            )
            if mean_RH is not None and mean_CH is not None:
                mean_RH[chunk] = mean_CH
        ctx.head = head
        if mean_RH is not None:
            ctx.save_for_backward(mean_RH, rows_E, tokens_E, slope_E)
        return logprobs_E

    @staticmethod
    def _chunk(
        head: Head, hidden_CH: torch.Tensor, rows_E: torch.Tensor, tokens_E: torch.Tensor, differentiate: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Log-probs and slopes ``[E]`` of tokens at rows of a chunk, and the sums over the vocabulary ``[C, hidden]``.

        Without ``differentiate`` the other two are not needed: the slopes are 1 and the sums None.
        """
        logits_CV = head.logits(hidden_CH, called=not _is_spread(head.linear))
        chosen_E = logits_CV[rows_E, tokens_E]
        slope_E, slope_CV = torch.ones_like(chosen_E), None
        if differentiate and head.softcap is not None:
            slope_CV = 1 - (logits_CV / head.softcap) ** 2
            slope_E = slope_CV[rows_E, tokens_E]
        # In place, since a second tensor of this size would be the peak of a whole forward.
        most_C = logits_CV.amax(-1)
        exp_CV = logits_CV.sub_(most_C[:, None]).exp_()
        sum_C = exp_CV.sum(-1)
        logprobs_E = chosen_E - (most_C + sum_C.log())[rows_E]
        if not differentiate:
            return logprobs_E, slope_E, None
        if slope_CV is not None:
            exp_CV *= slope_CV
        weight_VH = head.linear.weight[: head.num_logits]
        return logprobs_E, slope_E, (exp_CV.to(weight_VH.dtype) @ weight_VH).float() / sum_C[:, None]

    @staticmethod
    def backward(ctx: Any, gradient_E: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        mean_RH, rows_E, tokens_E, slope_E = ctx.saved_tensors
        with _whole(ctx.head.linear):
            own_EH = ctx.head.linear.weight[tokens_E].float() * (gradient_E * slope_E)[:, None]
        own_RH = segment_sum(own_EH, rows_E, len(mean_RH))
        total_R = segment_sum(gradient_E, rows_E, len(mean_RH))
        gradient_RH = own_RH.addcmul_(total_R[:, None], mean_RH.float(), value=-1)
        return (gradient_RH * ctx.head.scale).to(mean_RH.dtype), None, None, None


def _whole(linear: torch.nn.Linear) -> AbstractContextManager[None]:
    """A context in which a layer's weights are gathered if ZeRO-3 sharded them.

    By itself ZeRO-3 gathers them only for a call of the layer, in which they can be used once. All processes must enter
    together.
    """
    if not _is_spread(linear) or linear.weight.ds_status.name == "AVAILABLE":  # type: ignore[attr-defined]
        return nullcontext()
    from deepspeed.zero import GatheredParameters

    return GatheredParameters(list(linear.parameters()))


def _is_spread(linear: torch.nn.Linear) -> bool:
    return hasattr(linear.weight, "ds_id")


def _entropies(logits_RV: torch.Tensor) -> torch.Tensor:
    logprobs_RV = logits_RV.log_softmax(-1)
    # A token that a model rules out has a log-prob of -inf, and adds nothing to the entropy.
    return -(logprobs_RV.exp() * logprobs_RV.clamp(min=torch.finfo(logprobs_RV.dtype).min)).sum(-1)


def _edges_in(chunk: slice, rows_E: torch.Tensor) -> torch.Tensor:
    return ((rows_E >= chunk.start) & (rows_E < chunk.stop)).nonzero().squeeze(-1)
