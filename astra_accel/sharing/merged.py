"""Exports a LoRA tester as a stand-alone model, for tools that don't support adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from astra_accel.config import ModelConfiguration, RunConfiguration
from astra_accel.errors import SharingError
from astra_accel.evaluation.tester import ADAPTER_CONFIG, find_tester
from astra_accel.files.atomic import README, complete_or_absent, write_atomically
from astra_accel.files.run_folder import CONFIG, METRICS
from astra_accel.models.loading.model_files import ModelFiles
from astra_accel.models.roles import find_roles, load_roles
from astra_accel.sharing.evaluated import evaluation_of
from astra_accel.sharing.model_card import Origin, model_card

MergedDtype = Literal["float32", "bfloat16", "float16"]
TOLERANCE = 1e-3
"""The largest allowed log-prob difference of merged model and adapter, in nats; float32 rounds to about 1e-5."""
TEXT = "Good morning. My flight was delayed again, and nobody told me why! 1234 µé猫\n"


def export_merged(path: str | Path, folder: str | Path, *, dtype: MergedDtype = "float32") -> float:
    """Write a LoRA tester as one model: its base with the adapter added to the weights; its tokenizer; its card.

    Before anything is written, both read a text, and their log-probs of all tokens at all positions must agree. The
    adapter of a base loaded in 4 bits (QLoRA) is merged into the original weights, so both differ from the trained
    tester by the rounding to 4 bits.

    Args:
        path: the folder of a run that has ended, or of a LoRA tester.
        folder: the folder to write, new or empty. It is complete or absent.
        dtype: the type of the weights. 16 bits round away an adapter's small changes; the difference shows how much.

    Returns:
        The largest difference in a log-prob between base plus adapter in float32 and the written model.

    Raises:
        FileNotFoundError: there is no tester.
        SharingError: it is not a LoRA adapter, its base is unavailable or quantised, or merging changes its results.
    """
    tester = find_tester(Path(path))
    base = _base_of(Path(path), tester)
    with complete_or_absent(Path(folder)) as temporary:
        model, tokenizer, difference = _merge(base, tester, dtype)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_atomically(temporary / README, _card(Path(path), base))
    return difference


def _base_of(path: Path, tester: Path) -> ModelConfiguration:
    """The adapter's base model, as named by the run's configuration, or else by the adapter's."""
    if not (tester / ADAPTER_CONFIG).is_file():
        raise SharingError(
            f"{tester} has no {ADAPTER_CONFIG}: it is a whole model, not an adapter, and can be shared as it is"
        )
    if (path / CONFIG).is_file():
        section = RunConfiguration.load(path / CONFIG).tester
        return ModelConfiguration(
            path=section.path,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            dtype="float32",
        )
    adapter = json.loads((tester / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    name = adapter.get("base_model_name_or_path")
    if not name:
        raise SharingError(f"{tester / ADAPTER_CONFIG} names no base model; expected the folder of the run instead")
    return ModelConfiguration(path=name, revision=adapter.get("revision"), dtype="float32")


def _merge(base: ModelConfiguration, tester: Path, dtype: MergedDtype) -> tuple[Any, Any, float]:
    """The merged model, its tokenizer, and the largest difference of a log-prob."""
    try:
        files = find_roles(base.model_copy(update={"adapter": str(tester)}), base, base, None)
        _check_not_quantised(files.tester)
        peft = load_roles(files, "cpu").trained
    except (ValueError, OSError) as error:
        raise SharingError(f"{tester} can't be merged: {error}") from error
    tokenizer = files.tester.tokenizer
    expected = _logprobs(peft, tokenizer)
    model = peft.merge_and_unload(safe_merge=True)
    difference = float((_logprobs(model, tokenizer) - expected).abs().max())
    if not difference <= TOLERANCE:
        raise SharingError(
            f"{tester} can't be merged: log-probs of the merged model differ by up to {difference:.2g} from those of "
            f"the adapter, expected at most {TOLERANCE:g}. A weight that the model uses twice (a head tied to the "
            f"embeddings) can't be changed in one place alone. Share the adapter itself"
        )
    if dtype != "float32":
        model.to(getattr(torch, dtype))
        difference = float((_logprobs(model, tokenizer) - expected).abs().max())
    return model, tokenizer, difference


def _check_not_quantised(files: ModelFiles) -> None:
    if getattr(files.config, "quantization_config", None) is not None:
        raise ValueError(
            f"the weights of {files.source} are quantised and can't hold the sum; share the adapter itself"
        )


@torch.no_grad()
def _logprobs(model: Any, tokenizer: Any) -> torch.Tensor:
    """The log-prob of every token at every position of a text, ``[positions, vocabulary]``."""
    ids_1T = tokenizer(TEXT, return_tensors="pt").input_ids
    return model(input_ids=ids_1T).logits[0].float().log_softmax(-1)


def _card(path: Path, base: ModelConfiguration) -> str:
    if not (path / CONFIG).is_file():
        return model_card(Origin({"tester": base.model_dump(mode="json")}), "merged")
    text = (path / CONFIG).read_text(encoding="utf-8")
    return model_card(Origin.of_run(text, {}, path / METRICS), "merged", evaluation_of(path))
