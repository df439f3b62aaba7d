"""Fields, commands, files and messages that the documents name are there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from accelerate.commands.launch import launch_command_parser
from pydantic import BaseModel

import astra_accel
from astra_accel.cli import main as cli_main
from astra_accel.config import RunConfiguration
from astra_accel.jobs.evaluate import main as evaluate_main
from astra_accel.jobs.train import main as train_main
from tests.helpers.documents import PAGES, ROOT, blocks, inline_code, name_of

FIELD = re.compile(rf"(?<![\w./-])(?:--)?((?:{'|'.join(RunConfiguration.model_fields)})(?:\.[a-z_]+)+)")
PLACE = re.compile(r"[\w./]*\w(?:/|\.py|\.md|\.yaml)")
NAME = re.compile(r"([A-Za-z_][\w.]*)(?:\(.*\))?")
PARTS = ("astra_accel", "tests", "examples", "benchmarks", "docs", "accelerate_configs")
FILE = re.compile(r"(?:astra_accel|accelerate_configs|benchmarks|docs|examples|tests)/[\w./-]*\w/?")
MAINS: dict[str, Callable[[list[str]], object]] = {
    "examples/train.py": train_main,
    "examples/evaluate.py": evaluate_main,
}


def has_field(section: type[BaseModel], path: str) -> bool:
    name, _, rest = path.partition(".")
    if name not in section.model_fields:
        return False
    kinds = get_args(section.model_fields[name].annotation) or [section.model_fields[name].annotation]
    within = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return not rest or any(has_field(kind, rest) for kind in within)


def commands(page: Path) -> list[list[str]]:
    """The words of each command that starts something of ours."""
    lines = [line for block in blocks(page, "bash") for line in block.code.replace("\\\n", " ").splitlines()]
    return [
        shlex.split(line, comments=True) for line in lines if re.match(r"(astra-accel|accelerate|python|make) ", line)
    ]


@cache
def help_of(command: str) -> str:
    """What a command of the command line, or an example, says of itself; nothing if there is no such command."""
    parts = command.split()
    main, arguments = (cli_main, parts[1:]) if parts[0] == "astra-accel" else (MAINS[command], [])
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("argparse.ArgumentParser.print_help", lambda parser, *_: shown.append(parser.format_help()))
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
    return "".join(shown)


def unknown_options(words: list[str]) -> list[str]:
    """The options of a command that it does not have, or the command, if there is none of the name."""
    if words[0] == "accelerate":
        script = next(index for index, word in enumerate(words) if word.endswith(".py"))
        of_launch = {option for action in launch_command_parser()._actions for option in action.option_strings}
        unknown = [word for word in words[:script] if word.startswith("--") and word not in of_launch]
        return unknown + unknown_options(["python", *words[script:]])
    command = " ".join(words[:2]) if words[0] == "astra-accel" else words[1]
    if not help_of(command):
        return [command]

    def is_known(option: str) -> bool:
        path = option.removeprefix("--")
        of_run = path.partition(".")[0] in RunConfiguration.model_fields
        return has_field(RunConfiguration, path) if of_run else option in help_of(command)

    return [word for word in words if word.startswith("--") and not is_known(word)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fields_that_a_page_names_are_there(page: Path) -> None:
    texts = [*inline_code(page), *(block.code for block in blocks(page, "bash"))]
    named = {
        path for text in texts for path in FIELD.findall(text) if not path.endswith((".json", ".md", ".py", ".yaml"))
    }

    assert [path for path in sorted(named) if not has_field(RunConfiguration, path)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_that_a_page_shows_have_these_options(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets)
        else:
            assert unknown_options(words) == [], words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = {path for text in inline_code(page) for path in FILE.findall(text) if FILE.fullmatch(text)}
    named |= {word for words in commands(page) for word in words if FILE.fullmatch(word)}

    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "AGENTS.md", "CHANGELOG.md"])
def test_links_of_the_repository_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))

    assert [link for link in links if not (ROOT / link).exists()] == []


def missing_from_the_code(texts: list[str]) -> list[str]:
    """What a text for contributors names that is nowhere in the repository: files, folders, and names in Python."""
    files = [f"/{part}" for part in PARTS]
    files += [f"/{path.relative_to(ROOT).as_posix()}" for part in PARTS for path in (ROOT / part).rglob("*")]
    code = "\n".join(
        (ROOT / file[1:]).read_text(encoding="utf-8")
        for file in files
        if file.endswith(".py") and Path(__file__) != ROOT / file[1:]
    )
    words = set(re.findall(r"\w+", code))
    missing = []
    for text in texts:
        name = NAME.fullmatch(text)
        if PLACE.fullmatch(text):
            is_there = any(file.endswith("/" + text.rstrip("/")) for file in files)
        else:
            # One that ends in "_" is the beginning of names.
            is_there = name is None or text.endswith("_") or words.issuperset(name[1].split("."))
        if not is_there:
            missing.append(text)
    return missing


def test_names_in_the_contributors_guide_are_in_the_code() -> None:
    texts = inline_code(ROOT / "AGENTS.md")

    assert len(texts) > 100
    assert missing_from_the_code(texts) == []


def test_a_name_that_the_code_does_not_have_would_be_found() -> None:
    there = ["models/", "core/seeding.py", "seeded", "Algorithm.weight", "num_", "<name>.py", "make checks"]
    gone = ["rooms/", "core/seeds.py", "plan_rounds", "Algorithm.heaviness"]

    assert missing_from_the_code([*there, *gone]) == gone


def test_a_field_a_command_and_a_file_that_are_not_there_would_be_found() -> None:
    assert FIELD.findall("`training.learning_rate`") == ["training.learning_rate"]
    assert not has_field(RunConfiguration, "training.learning_rate")
    assert not has_field(RunConfiguration, "rollout.tester.top_q")
    assert has_field(RunConfiguration, "rollout.tester.top_p")
    assert unknown_options(["astra-accel", "evaluate", "runs/demo", "--overwrite", "--onward"]) == ["--onward"]
    assert unknown_options(["astra-accel", "improve", "runs/demo"]) == ["astra-accel improve"]
    assert unknown_options(["accelerate", "launch", "--machine", "1", "examples/train.py", "--training.lr", "1"]) == [
        "--machine"
    ]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


def test_the_readme_shows_every_room() -> None:
    (tree,) = [block.code for block in blocks(ROOT / "README.md", "") if "astra_accel/\n" in block.code]
    rooms = {path.name for path in (ROOT / "astra_accel").iterdir() if path.is_dir() and path.name != "__pycache__"}

    assert rooms - {"methods"} - {name.rstrip("/") for name in re.findall(r"\w+/(?=\s)", tree)} == set()


def test_every_public_name_is_in_the_reference_with_a_summary() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: astra_accel\.(\S+)$", page, re.MULTILINE))
    expected = {f"{module}.{name}" for name, module in astra_accel._MODULES.items() if name != "Trainer"}

    assert shown == expected
    for name in astra_accel._MODULES:
        summary = (getattr(astra_accel, name).__doc__ or "").splitlines()[:1]
        assert summary, name
        assert summary[0].endswith("."), name


def written_texts() -> str:
    """Every piece of text in the code of the package."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "astra_accel").rglob("*.py")]
    nodes: list[Any] = [node for tree in trees for node in ast.walk(tree)]
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_messages_that_are_explained_are_in_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    texts = written_texts()

    assert len(messages) > 30
    assert [part for message in messages for part in message.split("…") if part.strip() and part not in texts] == []
