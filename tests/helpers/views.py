"""What two sides see of a conversation, of tokenizers alone."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

from astra_accel.config import RolloutConfiguration
from astra_accel.methods.ast.views import Views
from astra_accel.models.loading.model_files import ModelFiles
from astra_accel.models.roles import RoleFiles


def views_of(tester: Any, target: Any = None, **rollout: Any) -> Views:
    """The views of models with these tokenizers; None is the tester's own."""
    sides = [_files(tester)] * 2 if target is None else [_files(tester), _files(target)]
    files = RoleFiles(*sides, baseline=sides[0], configurations={}, lora=None)
    return Views.from_files(files, RolloutConfiguration(**rollout))


def _files(tokenizer: Any) -> ModelFiles:
    config = LlamaConfig(vocab_size=len(tokenizer))
    return ModelFiles("some/model", None, config, tokenizer, frozenset([tokenizer.eos_token_id]), None)
