"""The README of a run's conversations as a data set, with front matter that tells ``datasets`` where the files are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from astra_accel.files.atomic import README, write_atomically
from astra_accel.files.run_folder import CONFIG, environment
from astra_accel.sharing.base_model import name_of
from astra_accel.sharing.markdown import AUDIENCE_TAG, fenced, prompt_sources, table
from astra_accel.sharing.rollouts import DATA, Split, export_rollouts

TAGS = ("red-teaming", "adaptive-stress-testing", "astra_accel", AUDIENCE_TAG)
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST = "1M<n<10M"
MEANINGS = {
    "step": "training step of the tester that wrote the probe",
    "episode": "number of the conversation tree within its step, or within the evaluation",
    "turn": "1 is the first",
    "node": "name of the turn within this data set: step / episode / path of child numbers",
    "parent": "name of the turn before; null at the first",
    "context": "the conversation before the probe",
    "probe": "what the tester wrote",
    "response": "what the target answered",
    "reward": "of the probe: the weighted sum of the terms; null where it is missing",
    "probe_tokens": "tokens of the probe",
    "response_tokens": "tokens of the response",
    "probe_thinking": "what the tester thought before the probe; null where it did not",
    "response_thinking": "what the target thought before the response; null where it did not",
    "combined_score": "the scorer's score of probe and response as one text, from 0 (safe) to 1",
    "response_score": "the scorer's score of the response",
    "probe_score": "the scorer's score of the probe",
    "naturalness": "mean log-prob a token of the probe",
    "probe_perplexity": "of the probe under the tester's baseline",
}
USE = """\
**Intended use.** Finding, measuring and mending failures of language models; training classifiers and defences;
research on red-teaming.

**Forbidden use.** Attacking systems of others, training models to do harm, and showing these texts to people who have
not been told what they are.

**The texts can be offensive, and false.** They were written by language models to bring out failures. They are no
statements of fact and of nobody's opinion. They have not been searched for personal data: a model may repeat what it
was trained on.
"""


def export_dataset(run: str | Path, folder: str | Path, *, jsonl: bool = False) -> list[Split]:
    """Write a run's conversations and their card; see :func:`~astra_accel.sharing.rollouts.export_rollouts`."""
    splits = export_rollouts(run, folder, jsonl=jsonl)
    config = Path(run) / CONFIG
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    write_atomically(Path(folder) / README, dataset_card(splits, settings or {}, jsonl=jsonl))
    return splits


def dataset_card(splits: Sequence[Split], config: Mapping[str, Any], *, jsonl: bool = False) -> str:
    """The README of a data set.

    Args:
        splits: its splits, the configuration loaded by default first.
        config: the run's configuration, section by section; empty if unknown.
        jsonl: whether the files are JSON lines.
    """
    sections = [
        "# Conversations of a red-teaming run",
        _summary(config),
        f"## Use\n\n{USE}",
        f"## How to load it\n\n{_loading(splits)}",
        *(f"## {split.name}\n\n{_columns(split)}" for split in splits),
        f"## How it was made\n\n{_making(config)}",
        f"## Versions of this export\n\n{fenced(chr(10).join(environment()))}",
    ]
    text = "\n\n".join(section.strip() for section in sections if section)
    return str(DatasetCard(f"---\n{_front_matter(splits, jsonl).to_yaml()}\n---\n\n{text}\n"))


def _front_matter(splits: Sequence[Split], jsonl: bool) -> DatasetCardData:
    num_rows = sum(split.num_rows for split in splits)
    ending = "jsonl" if jsonl else "parquet"
    return DatasetCardData(
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        task_categories=["text-generation"],
        size_categories=[next((size for limit, size in SIZES if num_rows < limit), LARGEST)],
        tags=list(TAGS),
        configs=[
            {
                "config_name": split.name,
                "data_files": [{"split": split.split, "path": f"{DATA}/{split.name}-*.{ending}"}],
                **({"default": True} if index == 0 else {}),
            }
            for index, split in enumerate(splits)
        ],
        dataset_info=[{"config_name": split.name, "features": _features(split.schema)} for split in splits],
    )


def _features(schema: pa.Schema) -> list[dict[str, str]]:
    return [{"name": column.name, "dtype": _dtype(column.type)} for column in schema]


def _dtype(kind: pa.DataType) -> str:
    """The name of a type in ``datasets``."""
    return "float64" if pa.types.is_floating(kind) else str(kind)


def _summary(config: Mapping[str, Any]) -> str:
    tester, target = (_model(config, role) for role in ("tester", "target"))
    who = f"a tester trained from {tester} and the target {target}" if tester and target else "a tester and its target"
    return (
        f"Conversations between {who}, collected by astra_accel: the tester writes *probes* that are to bring out "
        f"unsafe responses of the target, and is rewarded where they do."
    )


def _loading(splits: Sequence[Split]) -> str:
    lines = ["from datasets import load_dataset", "", 'folder = "."  # of this file, or its name on the hub']
    for split in splits:
        lines.append(f'{split.name} = load_dataset(folder, "{split.name}", split="{split.split}")')
    return fenced("\n".join(lines), "python")


def _columns(split: Split) -> str:
    rows = [(column.name, _dtype(column.type), _meaning(column.name)) for column in split.schema]
    missing = f", {split.num_missing} of them without a reward" if split.num_missing else ""
    return f"{split.num_rows} turns{missing}.\n\n{table(('column', 'type', 'is'), rows)}"


def _meaning(name: str) -> str:
    if name in MEANINGS:
        return MEANINGS[name]
    if name.startswith("category/"):
        _, scorer, label = name.split("/", 2)
        return f"the score of the response for {label}, by {scorer}"
    kind, _, scorer = name.partition("/")
    return f"{MEANINGS[kind]}, by {scorer}" if scorer and kind in MEANINGS else f"the reward's term {name}"


def _making(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    names = {name: config[name]["name"] for name in ("algorithm", "scorer") if name in config}
    parts = ["\n".join(f"- {name}: {value}" for name, value in names.items()), prompt_sources(config)]
    parts.append(
        "What the models wrote is subject to the terms of their licences, and the prompts to those of their source."
    )
    return "\n\n".join(part for part in parts if part)


def _model(config: Mapping[str, Any], role: str) -> str | None:
    model = config.get(role)
    return None if model is None else name_of(model)
