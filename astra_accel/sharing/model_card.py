"""The README of a trained tester: what it is, how it was trained, what it does, what it may be used for.

Its front matter has the hub's format (``huggingface_hub.ModelCardData``). The figures of an evaluation, made after the
tester, are added by ``evaluated``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import ModelCard, ModelCardData

from astra_accel.evaluation.display import number
from astra_accel.evaluation.tester import ADAPTER_CONFIG, MODEL_CONFIG
from astra_accel.files.run_folder import environment
from astra_accel.sharing.base_model import hub_id, is_tiny, license_of, name_of
from astra_accel.sharing.evaluated import NOT_EVALUATED, with_evaluation
from astra_accel.sharing.markdown import AUDIENCE_TAG, fenced, prompt_sources, table, without_places
from astra_accel.yaml_files import dump_yaml

TAGS = ("red-teaming", "adaptive-stress-testing", "astra_accel", AUDIENCE_TAG)

Weights = Literal["adapter", "full", "merged", "other"]
"""What is in a tester's folder: a LoRA adapter, a model trained in full, one that an adapter was merged into, or the
weights of a system that is not a transformers language model."""
RELATIONS = {"adapter": "adapter", "full": "finetune", "merged": "merge"}

USE = """\
**Intended use.** Finding failures of language models that you may test: your own, open ones, or those whose owner has
agreed; measuring whether a change made a model safer; research on red-teaming and on defences.

**Forbidden use.** Attacking systems of others. Producing harmful, harassing or deceptive text for any other end than
testing. Putting this model, or what it writes, before people who have not been told and have not agreed.

**Before you publish it:** a good tester is an attack on every model like its target. Tell the owner of the target
first, and keep the tester private, or gate who gets it, as long as what it finds is not fixed.
"""
LIMITS = """\
- Its output can be offensive, and so can what it brings targets to say.
- It finds what its reward's scorer counts as harm. Scorers miss harm in polite words, flag harmless text, and carry the
  biases of their training data.
- It was trained against one target with one budget. That it finds nothing in a model does not show that there is
  nothing.
"""


@dataclass(frozen=True)
class Origin:
    """What a card says about how a tester was trained.

    Attributes:
        config: the run's configuration, section by section; a run of a custom system has only ``training``.
        figures: the progress of training, by name.
        trained: figures of the first and the last update, by name.
        versions: the software's versions, one per line.
    """

    config: Mapping[str, Any]
    figures: Mapping[str, Any] = field(default_factory=dict)
    trained: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    versions: list[str] = field(default_factory=environment)

    @classmethod
    def of_run(cls, config_yaml: str, figures: Mapping[str, Any], metrics: Path) -> Origin:
        """Make it from a run's configuration, its progress, and its ``metrics.jsonl``."""
        known = {name: value for name, value in figures.items() if value is not None}
        return cls(yaml.safe_load(config_yaml), known, first_and_last(metrics))


def weights_in(folder: Path) -> Weights:
    """What is in a tester's folder."""
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    return "full" if (folder / MODEL_CONFIG).is_file() else "other"


def model_card(origin: Origin, weights: Weights, evaluation: Mapping[str, Any] | None = None) -> str:
    """The README of a tester.

    Args:
        origin: how it was trained.
        weights: what is in its folder.
        evaluation: ``metrics.json`` of an evaluation of it.
    """
    sections = [
        "# A tester for red-teaming",
        _summary(origin.config),
        f"## Use\n\n{USE}",
        f"## How to load it\n\n{_loading(origin.config, weights)}",
        f"## Figures on held-out prompts\n\n{NOT_EVALUATED}",
        f"## Training\n\n{_training(origin)}",
        f"## Limits\n\n{LIMITS}",
        f"## Versions\n\n{fenced(chr(10).join(origin.versions))}",
    ]
    text = "\n\n".join(section.strip() for section in sections)
    card = ModelCard(f"---\n{_front_matter(origin.config, weights).to_yaml()}\n---\n\n{text}\n")
    return str(card) if evaluation is None else with_evaluation(str(card), evaluation, origin.config)


def first_and_last(metrics: Path) -> dict[str, tuple[Any, Any]]:
    """Rewards, scores and loss of ``metrics.jsonl`` in the first line that has them and in the last."""
    found: dict[str, tuple[Any, Any]] = {}
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.is_file() else []
    for line in lines:
        if not line.endswith("\n"):
            break  # a killed run may leave half a line
        for name, value in json.loads(line).items():
            if name == "loss" or name.startswith(("reward/", "eval/")):
                found[name] = (found[name][0] if name in found else value, value)
    return found


def _front_matter(config: Mapping[str, Any], weights: Weights) -> ModelCardData:
    tester = config.get("tester")
    base = hub_id(tester)
    algorithm = config.get("algorithm", {}).get("name")
    libraries = {"adapter": "peft", "full": "transformers", "merged": "transformers", "other": None}
    return ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else RELATIONS.get(weights),
        library_name=libraries[weights],
        license=license_of(tester),
        pipeline_tag=None if weights == "other" else "text-generation",
        tags=[*TAGS, *([algorithm] if algorithm else [])],
    )


def _summary(config: Mapping[str, Any]) -> str:
    target = config.get("target")
    of = "a target model" if target is None else name_of(target)
    return (
        f"This model was trained with astra_accel to write *probes*: turns of a conversation that bring out unsafe "
        f"responses of {of}, so that its failures are found before its users find them. The method is adaptive stress "
        f"testing ([ASTPrompter](https://arxiv.org/abs/2407.09447))."
    )


def _loading(config: Mapping[str, Any], weights: Weights) -> str:
    if weights == "other":
        return "`trained.safetensors` holds the trained weights by their names in the system that was trained."
    tester = config.get("tester", {"path": ""})
    lines = ["from transformers import AutoTokenizer", "", 'folder = "."  # of this file, or its name on the hub']
    # A model with custom code, which users who load it must trust as well.
    options = ", trust_remote_code=True" if tester.get("trust_remote_code") else ""
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained(folder{options})"
    if weights != "adapter":
        lines[0] = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        lines += [f"tester = AutoModelForCausalLM.from_pretrained(folder{options})", tokenizer]
    elif is_tiny(tester["path"]):
        lines[:1] = ["from astra_accel.models.loading.tiny import build_tiny", "from peft import PeftModel", *lines[:1]]
        architecture = tester["path"].partition(":")[2]
        base = f"build_tiny({json.dumps(architecture) if architecture else ''})[0]"
        lines += [f"tester = PeftModel.from_pretrained({base}, folder)", tokenizer]
    else:
        lines[:1] = ["from peft import AutoPeftModelForCausalLM", *lines[:1]]
        lines += [f"tester = AutoPeftModelForCausalLM.from_pretrained(folder{options})", tokenizer]
    note = "It writes the next turn of a running text; see `rollout.format` below for how it was asked in training."
    return f"{_what(tester, weights)}\n\n{fenced(chr(10).join(lines), 'python')}\n\n{note}"


def _what(tester: Mapping[str, Any], weights: Weights) -> str:
    base = name_of(tester)
    if weights == "adapter":
        rounded = " The copy that it was trained on was rounded to 4 bits." if tester["path"] == "embedded" else ""
        return f"A LoRA adapter on {base}.{rounded}"
    return f"A whole model, {'merged of a LoRA adapter and' if weights == 'merged' else 'trained from'} {base}."


def _training(origin: Origin) -> str:
    parts = ["\n".join(f"- {name}: {value}" for name, value in origin.figures.items())]
    if origin.trained:
        rows = [(name, _short(first), _short(last)) for name, (first, last) in origin.trained.items()]
        parts.append(table(("figure", "first", "last"), rows))
    parts.append(prompt_sources(origin.config))
    settings = dump_yaml(without_places(origin.config))
    parts.append(f"All settings:\n\n{fenced(settings, 'yaml')}")
    return "\n\n".join(part for part in parts if part)


def _short(value: Any) -> str:
    return number(value) if isinstance(value, float) or value is None else str(value)
