"""Identifies a run's prompts, so that a run resumed from a checkpoint notices changed ones.

A path and a split may stay the same while the file they refer to changes. So a hash of the texts and their number are
saved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from astra_accel.core.prompt import Prompt, as_json

NAMES = ("train", "dev", "test")
Digests = dict[str, dict[str, Any]]


def digests_of(prompts: Mapping[str, Sequence[Any] | None]) -> Digests:
    """``number`` and ``sha256`` of each list of prompts by name, without lists that are empty or of something else."""
    return {
        name: {"number": len(texts), "sha256": _sha256(texts)}
        for name, texts in prompts.items()
        if texts and all(isinstance(text, str | Prompt) for text in texts)
    }


def prompts_of(sampler: Any) -> dict[str, Sequence[Any] | None]:
    """The prompts of a sampler, if it has the attributes that an ``ASTSampler`` has."""
    return {"train": getattr(sampler, "prompts", None), "dev": getattr(sampler, "eval_prompts", None)}


def changed_prompts(before: Digests, now: Digests) -> dict[str, str]:
    """The prompts that changed, by name, as ``prompts.train: 40 prompts (…), now 41 (…)``.

    Lists that only one of the two has are left out: the configuration shows whether there are any.
    """
    return {
        name: f"prompts.{name}: {_shown(before[name])}, now {_shown(now[name])}"
        for name in before
        if name in now and before[name] != now[name]
    }


def _sha256(texts: Sequence[str | Prompt]) -> str:
    return hashlib.sha256(json.dumps(list(map(as_json, texts))).encode("ascii")).hexdigest()


def _shown(digest: Mapping[str, Any]) -> str:
    return f"{digest['number']} prompts (sha256 {digest['sha256'][:12]})"
