"""Which prompts a run has, so that one that continues from a checkpoint notices that it has others.

A path and a split may stay the same while the file behind them changes. What is kept is a hash of the texts and how
many there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = ("train", "dev", "test")
Digests = dict[str, dict[str, Any]]


def digests_of(prompts: Mapping[str, Sequence[Any] | None]) -> Digests:
    """``number`` and ``sha256`` of each list of prompts, by name; none of those that are empty or hold no texts."""
    return {
        name: {"number": len(texts), "sha256": _sha256(texts)}
        for name, texts in prompts.items()
        if texts and all(isinstance(text, str) for text in texts)
    }


def prompts_of(sampler: Any) -> dict[str, Sequence[Any] | None]:
    """What a sampler begins conversations with, where it tells as an ``ASTSampler`` does."""
    return {"train": getattr(sampler, "prompts", None), "dev": getattr(sampler, "eval_prompts", None)}


def changed_prompts(before: Digests, now: Digests) -> dict[str, str]:
    """The prompts that are others, as ``prompts.train: 40 prompts (…), now 41 (…)`` by name.

    Those that only one of both knows are left out: the configuration tells whether there are any.
    """
    return {
        name: f"prompts.{name}: {_shown(before[name])}, now {_shown(now[name])}"
        for name in before
        if name in now and before[name] != now[name]
    }


def _sha256(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode("ascii")).hexdigest()


def _shown(digest: Mapping[str, Any]) -> str:
    return f"{digest['number']} prompts (sha256 {digest['sha256'][:12]})"
