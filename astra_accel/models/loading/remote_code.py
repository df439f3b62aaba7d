"""Models that come with their own code: Python files beside the weights, named by ``auto_map`` in their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from astra_accel.errors import ConfigurationError


def own_code_of_model(source: str, revision: str | None) -> dict[str, str]:
    """The parts of a model that only its own code can make, with the class that would run, as "file.Class".

    Empty if transformers has the model itself, since its own class is used then.
    """
    config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    kind, auto_map = config.get("model_type"), config.get("auto_map") or {}
    known = {"AutoConfig": kind in CONFIG_MAPPING, "AutoModelForCausalLM": kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    return {part: str(auto_map[part]) for part, has in known.items() if part in auto_map and not has}


def own_code_of_tokenizer(source: str, revision: str | None) -> dict[str, str]:
    """The same for a tokenizer."""
    auto_map = get_tokenizer_config(source, revision=revision).get("auto_map") or {}
    if isinstance(auto_map, Mapping):
        auto_map = auto_map.get("AutoTokenizer")
    classes = [name for name in (auto_map if isinstance(auto_map, list | tuple) else [auto_map]) if name]
    return {"AutoTokenizer": str(classes[-1])} if classes else {}


def refuse_own_code(code: Mapping[str, str], path: str, role: str, trusted: bool) -> None:
    """Refuse a model's own code unless the user trusts it.

    Raises:
        ConfigurationError: the code is not trusted; the message names its files, and the field that allows it.
    """
    if code and not trusted:
        raise ConfigurationError(
            f"{role}.path is {path!r}, which needs code of its own ({_files(code)}) that would run on every process "
            f"with your rights; read it, and if you trust it set {role}.trust_remote_code to true"
        )


def _files(code: Mapping[str, Any]) -> str:
    # "owner/name--file.Class" is the code of another repository.
    parts = []
    for part, location in code.items():
        repository, _, name = location.rpartition("--")
        file, _, cls = name.rpartition(".")
        parts.append(f"{part}: {cls} in {file.replace('.', '/')}.py{f' of {repository}' if repository else ''}")
    return ", ".join(parts)
