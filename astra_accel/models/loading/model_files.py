"""What is known about a model before its weights load: configuration, tokenizer, limits. Mistakes are reported here."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from astra_accel.config import LoRAConfiguration, ModelConfiguration, Quantization
from astra_accel.config.models import TINY_NAME
from astra_accel.errors import ConfigurationError
from astra_accel.files.model_places import check_place, local_folder, why_not_had
from astra_accel.files.saved_models import damage_of_settings, damage_of_weights
from astra_accel.models.loading.adapter_files import ADAPTER_CONFIG
from astra_accel.models.loading.adapter_targets import ALL_LINEAR, other_parameters, unmatched
from astra_accel.models.loading.causal_models import EXPECTED, not_causal, reads_ahead
from astra_accel.models.loading.embedded import EMBEDDED_NAME, embedded_model_path
from astra_accel.models.loading.embedding_rows import configured_rows
from astra_accel.models.loading.quantization import compute_alike, loading_options
from astra_accel.models.loading.remote_code import own_code_of_model, own_code_of_tokenizer, refuse_own_code
from astra_accel.models.loading.text_forward import is_linear
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny
from astra_accel.whole_models import build_skeleton, loaded_whole

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class ModelFiles:
    """A model that has not been loaded yet.

    Attributes:
        source: hub id, local folder or ``tiny:<architecture>``.
        revision: the revision of a hub model.
        config: the transformers configuration.
        tokenizer: its tokenizer, with a pad token (the end-of-text token if it had none).
        end_ids: the tokens that end a turn.
        max_length: the most tokens that the model takes; None if it has no limit.
        trust_remote_code: whether it may run its own code.
    """

    source: str
    revision: str | None
    config: Any
    tokenizer: Any
    end_ids: frozenset[int]
    max_length: int | None
    trust_remote_code: bool = False

    def load(
        self, dtype: torch.dtype | str, device: torch.device | str = "cpu", quantization: Quantization | None = None
    ) -> Any:
        """Load the model on a device, in eval mode and frozen. ``dtype`` "auto" is the checkpoint's own.

        Raises:
            ValueError: weights are missing, which transformers would initialise at random, or the model is not causal.
        """
        if not self.source.startswith(TINY_NAME + ":"):
            model = self._from_pretrained(dtype, device, quantization)
        else:
            model = build_tiny(self.source.removeprefix(TINY_NAME + ":"))[0]
            if quantization is None:
                model.to(dtype=torch.float32 if dtype == "auto" else dtype)
            else:  # Weights are quantised as they load.
                model = self._from_pretrained(dtype, device, quantization, built=model)
        model.to(device).eval().requires_grad_(False)
        if reads_ahead(model):
            raise ConfigurationError(
                f"{self.source} is a {type(model).__name__} whose tokens see those after them; {EXPECTED}"
            )
        return model

    def _from_pretrained(
        self,
        dtype: torch.dtype | str,
        device: torch.device | str,
        quantization: Quantization | None,
        built: Any = None,
    ) -> Any:
        options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
        if quantization is not None:
            options["dtype"] = (self.config.dtype or torch.float32) if dtype == "auto" else dtype
            options |= loading_options(quantization, options["dtype"], device)
        else:
            options |= _placement(torch.device(device))
        with loaded_whole():
            if built is not None:
                model, loading = type(built).from_pretrained(
                    None, config=built.config, state_dict=built.state_dict(), **options
                )
            else:
                model, loading = AutoModelForCausalLM.from_pretrained(
                    self.source, revision=self.revision, trust_remote_code=self.trust_remote_code, **options
                )
        missing = sorted(loading["missing_keys"])
        if missing:
            raise ValueError(f"{self.source} lacks {len(missing)} of its weights, such as {missing[0]}")
        compute_alike(model)
        return model


def _placement(device: torch.device) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that put each weight on a device other than the CPU as it is read.

    Otherwise all processes of a machine would first hold their models in host memory, all at the same time.
    """
    return {} if device.type == "cpu" else {"device_map": {"": device}}


def find_model(model: ModelConfiguration, role: str) -> ModelFiles:
    """Find a model's configuration and tokenizer and check that its weights are present and complete.

    Raises:
        FileNotFoundError, NotADirectoryError: the path is a local folder without configuration or weights, or not a
            folder.
        ConfigurationError: a file is damaged, the model is not a causal language model, or it needs its own code, which
            is not trusted; the message names the field, the file, what was found and what was expected.
        ValueError: the architecture is unknown, the tokenizer has neither a pad nor an end-of-text token, or the model
            has no embedding for the padding or for any end-of-turn token.
    """
    if model.path == TINY_NAME or model.path.startswith(TINY_NAME + ":"):
        return _tiny_files(model.path.partition(":")[2] or TINY_ARCHITECTURES[0], role)
    source = str(embedded_model_path()) if model.path == EMBEDDED_NAME else model.path
    check_place(source, f"{role}.path", "a saved model")
    folder = local_folder(source, model.revision, "config.json")
    if folder is not None:
        _check_folder(folder, role)
    config = _find_config(model, source, role)
    tokenizer = _find_tokenizer(model, source, role)
    generation_config = _generation_config(source, model.revision)
    return _files(role, model, source, config=config, tokenizer=tokenizer, generation_config=generation_config)


def _find_config(model: ModelConfiguration, source: str, role: str) -> Any:
    try:
        code = own_code_of_model(source, model.revision)
        refuse_own_code(code, model.path, role, model.trust_remote_code)
        config = AutoConfig.from_pretrained(source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except ConfigurationError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{role}.path is {model.path!r}, which is neither a local model folder nor one that the hub gave: "
            f"{why_not_had(error, source)}"
        ) from error
    except Exception as error:
        raise _failed_code(model, role, error) from error
    own_class = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if own_class is not None and model.trust_remote_code:
        try:  # before the weights load
            get_class_from_dynamic_module(own_class, source, revision=model.revision)
        except Exception as error:
            raise _failed_code(model, role, error) from error
    reason = not_causal(config, own_code=own_class is not None and model.trust_remote_code)
    if reason is not None:
        raise ConfigurationError(f"{role}.path is {model.path!r}, {reason}; {EXPECTED}")
    return config


def _failed_code(model: ModelConfiguration, role: str, error: Exception) -> ConfigurationError:
    what = "the model's own code" if model.trust_remote_code else "its configuration"
    return ConfigurationError(
        f"{role}.path is {model.path!r}: {what} failed with {type(error).__name__}: {' '.join(str(error).split())}"
    )


def _find_tokenizer(model: ModelConfiguration, source: str, role: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:
        refuse_own_code(own_code_of_tokenizer(source, model.revision), model.path, role, model.trust_remote_code)
        raise ConfigurationError(
            f"{role}.path is {model.path!r}, whose tokenizer can't be loaded ({type(error).__name__}: "
            f"{why_not_had(error, source)}); expected tokenizer.json, or what else its class reads"
        ) from error
    # If its files are missing, transformers makes a tokenizer with only special tokens.
    if not tokenizer("a", add_special_tokens=False).input_ids:
        raise ConfigurationError(
            f"{role}.path is {model.path!r}, whose tokenizer has no tokens of text ({len(tokenizer)} in all); expected "
            f"tokenizer.json, or what else its class ({type(tokenizer).__name__}) reads"
        )
    return tokenizer


def _tiny_files(architecture: str, role: str) -> ModelFiles:
    if architecture not in TINY_ARCHITECTURES:
        expected = ", ".join(f"{TINY_NAME}:{name}" for name in TINY_ARCHITECTURES)
        raise ValueError(f"{role}.path: unknown tiny architecture {architecture!r}; expected one of {expected}")
    model, tokenizer = build_tiny(architecture)
    return _files(
        role,
        ModelConfiguration(),
        f"{TINY_NAME}:{architecture}",
        config=model.config,
        tokenizer=tokenizer,
        generation_config=model.generation_config,
    )


def _generation_config(source: str, revision: str | None) -> GenerationConfig:
    """The settings that transformers' ``generate`` would use: from their own file, or else from the model's.

    If the settings have no end-of-text token, they get the model's.
    """
    # As written in the file: default ids of a configuration class may be any token of this model's vocabulary.
    written, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    of_model = GenerationConfig.from_model_config(written)
    try:
        found = GenerationConfig.from_pretrained(source, revision=revision)
    except OSError:
        return of_model
    if found.eos_token_id is None:
        found.eos_token_id = of_model.eos_token_id
    return found


def _files(
    role: str, model: ModelConfiguration, source: str, *, config: Any, tokenizer: Any, generation_config: Any
) -> ModelFiles:
    end_ids = _as_set(tokenizer.eos_token_id) | _as_set(generation_config.eos_token_id)
    if generation_config.stop_strings:
        logger.warning(
            "%s has stop_strings %s in its generation_config.json. Turns end only with tokens, here with %s, or at "
            "max_new_tokens.",
            source,
            generation_config.stop_strings,
            tokenizer.convert_ids_to_tokens(sorted(end_ids)) or "none",
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the {role}'s tokenizer ({source}) has neither a pad token nor an end-of-text token; "
                f"set one of them in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    _check_special_ids(role, source, config, end_ids, model.trust_remote_code)
    max_length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return ModelFiles(
        source, model.revision, config, tokenizer, end_ids, max_length, trust_remote_code=model.trust_remote_code
    )


def _check_special_ids(role: str, source: str, config: Any, end_ids: frozenset[int], trust_remote_code: bool) -> None:
    """Check that a model can end its turn, and that its padding has an embedding."""
    rows = configured_rows(config)
    if rows is None:
        return
    if end_ids and min(end_ids) >= rows:
        raise ValueError(
            f"the {role} ({source}) ends its turns with the token id {min(end_ids)}, but has {rows} embeddings, for "
            f"ids from 0 to {rows - 1}; expected an end-of-text token of its own in tokenizer_config.json or "
            f"generation_config.json"
        )
    pad_id = getattr(config.get_text_config(), "pad_token_id", None)
    if pad_id is not None and pad_id >= rows and not _can_be_built(config, trust_remote_code):
        raise ValueError(
            f"the {role}'s config.json ({source}) has the pad_token_id {pad_id}, but {rows} embeddings (vocab_size); "
            f"expected an id from 0 to {rows - 1}, or null"
        )


def _can_be_built(config: Any, trust_remote_code: bool) -> bool:
    """Whether the layers accept the configuration; torch's embedding asserts that it holds the padding."""
    try:
        build_skeleton(config, trust_remote_code=trust_remote_code)
    except AssertionError:
        return False
    return True


def _as_set(ids: int | list[int] | None) -> frozenset[int]:
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def _check_folder(folder: Path, role: str) -> None:
    if not (folder / "config.json").is_file():
        instead = _what_else(folder, role)
        raise FileNotFoundError(
            f"{role}.path is the folder {folder}, which has no config.json: expected a saved model{instead}"
        )
    if not any(list(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        found = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise FileNotFoundError(
            f"{role}.path is the folder {folder}, which has no weights (expected {' or '.join(WEIGHT_FILES)}); "
            f"it holds {found}"
        )
    damage = damage_of_settings(folder) or damage_of_weights(folder)
    if damage is not None:
        raise ConfigurationError(f"{role}.path is the folder {folder}, in which {damage}")
    if (folder / ADAPTER_CONFIG).is_file():
        raise ConfigurationError(
            f"{role}.path is the folder {folder}, which holds a whole model and an adapter ({ADAPTER_CONFIG}), which "
            f"transformers would put on it unasked; expected one of them, the adapter as {role}.adapter"
        )


def _what_else(folder: Path, role: str) -> str:
    """What a folder that is not a model may be instead."""
    if (folder / ADAPTER_CONFIG).is_file():
        return f", and this is a LoRA adapter: give it as {role}.adapter, and the model that it is for as {role}.path"
    if (folder / "tester").is_dir():
        return f", and this is a run: its tester is in {folder / 'tester'}"
    if (folder / "trained.safetensors").is_file():
        return ", and this is a checkpoint of a run: resume it with --resume, or use the run's tester folder"
    return ""


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether token ids of one tokenizer mean the same to the other."""
    return one is other or (
        one.get_vocab() == other.get_vocab()
        and one.is_fast == other.is_fast
        and (not one.is_fast or _rules(one) == _rules(other))
    )


def _rules(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer does with text, without how it padded and truncated its last batch, which is stored too."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: value for name, value in rules.items() if name not in ("padding", "truncation")}


def check_lora_targets(lora: LoRAConfiguration, files: ModelFiles) -> None:
    """Check that LoRA's target modules exist, from the architecture alone.

    Raises:
        ValueError: a name matches no linear layer and no other parameter; the message lists those that exist.
    """
    if lora.target_modules == ALL_LINEAR:
        return
    skeleton = build_skeleton(files.config, trust_remote_code=files.trust_remote_code)
    layers = [name for name, module in skeleton.named_modules() if is_linear(module)]
    parameters = other_parameters(skeleton)
    missing = unmatched(lora.target_modules, layers)
    if not isinstance(lora.target_modules, str):
        missing = [name for name in unmatched(missing, parameters) if name != ALL_LINEAR]
    if missing or not lora.target_modules:
        raise ValueError(
            f"lora.target_modules: {missing} match no linear layer of {files.source}; there are {_last_names(layers)}"
            + (f", and the parameters {_last_names(parameters)}" if parameters else "")
        )


def _last_names(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))
