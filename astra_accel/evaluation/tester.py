"""Finds the trained tester to evaluate, and makes a configuration that loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_accel.config import RunConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.files.atomic import sha256
from astra_accel.files.run_folder import CONFIG, TESTER
from astra_accel.files.saved_models import damage_of

ADAPTER_CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"
WEIGHTS = ("*.safetensors", "*.bin")


def find_tester(path: Path) -> Path:
    """The folder of a trained tester: ``tester/`` of a run, or the folder itself.

    Raises:
        FileNotFoundError: there is no tester, or its weights are missing; says what was looked for.
        ConfigurationError: a weights file is damaged.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}; expected a run or a tester")
    folder = path / TESTER if (path / TESTER).is_dir() else path
    if not any((folder / name).is_file() for name in (ADAPTER_CONFIG, MODEL_CONFIG)):
        raise FileNotFoundError(
            f"{folder} holds no tester: neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}; expected a run that has ended (it "
            f"has a {TESTER} folder) or what save_pretrained wrote"
        )
    if not _weights(folder):
        raise FileNotFoundError(f"{folder} holds a tester without weights; expected {' or '.join(WEIGHTS)}")
    for file in sorted(folder.glob("*.safetensors")):
        damage = damage_of(file)
        if damage is not None:
            raise ConfigurationError(f"the weights in {file} can't be read: {damage}")
    return folder


def load_configuration(path: Path, config: Path | None, overrides: list[str]) -> RunConfiguration:
    """The configuration to evaluate with: the given one, else the run's.

    Raises:
        FileNotFoundError: none is given, and the path is not a run with a ``config.yaml``.
        ConfigurationError: one of its fields is invalid.
    """
    if config is None and not (path / CONFIG).is_file():
        raise FileNotFoundError(f"no {CONFIG} in {path}; expected a run, or --config FILE for a tester without its run")
    return RunConfiguration.load(path / CONFIG if config is None else config, overrides)


def with_tester(config: RunConfiguration, folder: Path | None) -> RunConfiguration:
    """The configuration with the tester of a folder: an adapter on the configured model, or a complete model.

    The baseline stays what it was in training. Without a folder, so does the tester: a new adapter changes nothing.
    """
    if folder is None:
        return config
    baseline = config.baseline or config.tester.model_copy()
    if (folder / ADAPTER_CONFIG).is_file():
        tester = config.tester.model_copy(update={"adapter": str(folder)})
    else:
        tester = config.tester.model_copy(update={"path": str(folder), "revision": None, "adapter": None})
    return config.model_copy(update={"tester": tester, "baseline": baseline})


def settings_of(config: RunConfiguration, folder: Path | None) -> dict[str, Any]:
    """The settings, besides the prompts, that determine an evaluation's conversations; JSON values.

    Args:
        config: the configuration before :func:`with_tester`, since a tester is identified by its weights, not its
            location.
        folder: the tester's folder; None for the tester before training.
    """
    sections = {"tester", "target", "baseline", "rollout", "reward", "scorer"}
    settings: dict[str, Any] = config.model_dump(mode="json", include=sections)
    settings["held_out"] = config.model_dump(mode="json")["evaluation"]["scorers"]
    for name in ("tree_width", "batch_rows"):  # only for training; and without influence
        del settings["rollout"][name]
    settings["rollout"]["tree_depth"] = config.eval_depth
    if folder is not None:
        settings["tester"]["weights"] = {file.name: sha256(file) for file in _weights(folder)}
    return settings


def _weights(folder: Path) -> list[Path]:
    return sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
