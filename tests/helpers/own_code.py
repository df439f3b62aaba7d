"""A model in a folder that brings code of its own, as some of the hub do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from astra_accel.models.loading.tiny import save_tiny

CONFIGURATION = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def save_with_own_code(folder: Path, *, seed: int = 0, model: str = MODEL, **auto_map: str) -> Path:
    """A tiny Llama whose classes are in two files of its folder, under a model type that transformers doesn't know.

    Args:
        folder: where to.
        seed: of the weights.
        model: the text of the file with the model's class.
        auto_map: further parts that are made by code of its own.
    """
    save_tiny(folder, "llama", seed=seed)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "own_llama",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
            **auto_map,
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "configuration_own.py").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "modeling_own.py").write_text(model, encoding="utf-8")
    return folder
