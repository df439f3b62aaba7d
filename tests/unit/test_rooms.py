"""The order of the rooms: a file imports from its own room and from those below it, nothing above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.documents import ROOT

PACKAGE = ROOT / "astra_accel"
# From the top down; rooms of one line are one.
ORDER = [
    ["cli", "commands"],
    ["doctor"],
    ["jobs"],
    ["training"],
    ["sharing", "report"],
    ["evaluation"],
    ["experience"],
    ["methods"],
    ["distributed"],
    ["models"],
    ["algorithms"],
    ["scorers", "data"],
    ["endpoints"],
    ["files"],
    ["core"],
    ["config"],
    ["launching", "overrides", "whole_models", "yaml_files"],
    ["arguments", "errors", "lasting_output", "lazy", "paths", "registries"],
]
LEVEL = {room: len(ORDER) - place for place, rooms in enumerate(ORDER) for room in rooms}


SMALL = {
    "paths.py": "every command reads it before torch is there",
    "registries.py": "a table; one list of algorithms, and one of scorers",
    "whole_models.py": "scorers and models/ both load by it, and neither may import the other",
    "scorers/profanity.py": "a file a scorer",
    "models/layers/activation_checkpointing.py": "a change to layers of its own",
    "training/run_context.py": "what the parts of training share, so that none takes the trainer",
}
"""Files of fewer than 40 lines, and why each is not a part of another."""


def room_of(module: str) -> str:
    """The room of a module of the package, by its dotted name."""
    return module.removeprefix("astra_accel.").partition(".")[0]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """The line and the module of each import of the package, those for type checking and in functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "astra_accel":
            yield from ((node.lineno, f"astra_accel.{name.name}") for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("astra_accel."):
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name.startswith("astra_accel."))


def upward(files: list[Path]) -> list[str]:
    """Each import of a room above the file's own."""
    found = []
    for file in files:
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for line, module in imports(file):
            if room_of(module) in LEVEL and LEVEL[room_of(module)] > LEVEL[room]:
                found.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    return found


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def test_every_room_has_its_place() -> None:
    rooms = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}

    assert rooms == set(LEVEL)


def test_no_file_imports_from_a_room_above_its_own() -> None:
    assert upward(FILES) == []


def test_no_folder_is_crowded() -> None:
    crowded = {
        str(folder.relative_to(ROOT)): number
        for folder in PACKAGE.rglob("*/")
        if (number := len([file for file in folder.glob("*.py") if file.name != "__init__.py"])) > 13
    }

    assert crowded == {}


def test_every_file_can_be_read_in_one_sitting() -> None:
    long = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}

    assert {str(file.relative_to(ROOT)): lines for file, lines in long.items() if lines > 400} == {}


def test_a_small_file_has_a_reason_to_stand_alone() -> None:
    small = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if file.name != "__init__.py" and len(file.read_text(encoding="utf-8").splitlines()) < 40
    }

    assert small == set(SMALL)


def test_an_import_upward_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PACKAGE / "core" / "not_there.py"
    text = "def late():\n    from astra_accel.training.trainer import AccelTrainer\n    return AccelTrainer\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)

    assert upward([file]) == ["astra_accel/core/not_there.py:2 imports astra_accel.training.trainer"]
