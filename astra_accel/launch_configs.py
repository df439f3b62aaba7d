"""The Accelerate configurations that come with the package."""

from __future__ import annotations

from pathlib import Path

from astra_accel.errors import ConfigurationError

PACKAGE = Path(__file__).parent


def accelerate_configs() -> dict[str, Path]:
    """The Accelerate configurations that come with the package, by name."""
    # Beside the package in a checkout, inside it in an installed wheel.
    folders = [PACKAGE / "accelerate_configs", PACKAGE.parent / "accelerate_configs"]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def accelerate_config(name: str) -> Path:
    """The file of a named Accelerate configuration (``cpu_2``, ``multi_gpu``), or the path itself.

    Raises:
        ConfigurationError: there is no configuration of that name; lists the available ones.
    """
    if Path(name).is_file():
        return Path(name)
    files = accelerate_configs()
    if name not in files:
        raise ConfigurationError(
            f"--accelerate-config: unknown configuration {name!r}; expected a file or one of {', '.join(files)}"
        )
    return files[name]
