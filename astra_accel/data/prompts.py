"""The prompts of a split: openings, or goals with openings, every one of them checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from astra_accel.core.prompt import Goal, Prompt, have_goals
from astra_accel.data.sources import BENIGN, BUNDLED, FILE_SUFFIXES, Rows, fault, is_file_name, read_rows, short

__all__ = [
    "BENIGN",
    "BUNDLED",
    "FILE_SUFFIXES",
    "check_disjoint",
    "is_file_name",
    "load_prompts",
    "read_prompts",
]

USUAL_COLUMNS = ("text", "prompt")


class GoalColumns(NamedTuple):
    """The columns of a data set of goals; None for one that it lacks."""

    goal: str
    category: str | None = None
    context: str | None = None


KNOWN_GOALS = (
    GoalColumns("goal", "category", "context"),  # AdvBench, which has goals alone, and files of one's own
    GoalColumns("Goal", "Category"),  # JailbreakBench
    GoalColumns("Behavior", "SemanticCategory", "ContextString"),  # HarmBench
    GoalColumns("forbidden_prompt", "category"),  # StrongREJECT
)
"""The columns of goals that need not be named."""
OPENING = "opening"


def load_prompts(
    source: str | os.PathLike[str] = BUNDLED,
    *,
    split: str = "train",
    column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> list[str]:
    """Load the prompts of one split, in order and unchanged: nothing is stripped, duplicates are kept.

    Args:
        source: One of

            - `"bundled"`: this package's neutral openings, in the splits train, dev, test.
            - `"benign"`: this package's harmless requests that look dangerous; one split, "train".
            - A local file. `json`: a list of strings or of objects; `jsonl`: a string or an object per line;
              `csv`: with a header line; `parquet`; `txt`: a prompt per line, where blank lines only separate
              and are skipped. A file has one split, "train", which is all of it. Nothing is cached.
            - Anything else that `datasets.load_dataset` takes: the id of a data set on the Hugging Face hub, or a
              local folder. These are cached in the cache of `datasets`.
        split: The name of a split, or a slice in the syntax of `datasets`, such as `"train[:80%]"`.
        column: The column that holds the prompts. By default "text" if there is such a column, else "prompt",
            else the only column that holds strings.
        config_name: The configuration of a hub data set or a folder.
        revision: The branch, tag or commit of a hub data set.

    Raises:
        FileNotFoundError: There is no such file, folder or data set.
        ValueError: The file is empty, can't be read or has another suffix; a data set can't be reached; there is no
            such split or column, or the column is ambiguous; the split has no rows; a prompt is not a string, or is
            blank (the message gives its row, counted from 1, in the whole file or in the split of a hub data set);
            `config_name` or `revision` is given for the bundled list or for a file, which have neither.
    """
    rows = read_rows(os.path.expanduser(os.fspath(source)), split, config_name, revision)
    return _openings(rows, split, column)


def read_prompts(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    column: str | None = None,
    goal: str | None = None,
    category: str | None = None,
    context: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> list[str] | list[Prompt]:
    """Load what a source holds: goals if their column is named, or it has a known one and none of openings.

    Each goal comes with its opening, in order and unchanged.

    Args:
        source, split, config_name, revision: As for :func:`load_prompts`.
        column: The column of the openings. With goals it is by default "opening", "text" or "prompt", if there is such
            a column; else openings are empty.
        goal: The column of the goals. By default that of AdvBench, JailbreakBench, HarmBench or StrongREJECT, or
            "goal".
        category: The column of their kinds. By default the one that belongs to those goals, if it exists.
        context: The column of the texts that goals refer to; likewise. An empty cell is none.

    Raises:
        FileNotFoundError, ValueError: As for :func:`load_prompts`, of goals too; or a category or a context is named,
            but there are no goals.
    """
    rows = read_rows(os.path.expanduser(os.fspath(source)), split, config_name, revision)
    has_openings = column is not None or any(usual in rows.holds_strings for usual in USUAL_COLUMNS)
    if goal is not None or not has_openings:
        columns = _goal_columns(rows, goal, category, context)
        if columns is not None:
            return _goals(rows, split, columns, column)
    for name, value in (("category", category), ("context", context)):
        if value is not None:
            raise ValueError(f"{name} is {value!r}, but there is no column of goals; expected goal to name it")
    return _openings(rows, split, column)


def check_disjoint(train: Iterable[str | Prompt], held_out: Iterable[str | Prompt], names: tuple[str, str]) -> None:
    """Check that no held-out prompt is trained on, nor its goal if it has one.

    Args:
        train: The prompts to train on.
        held_out: The prompts that training must never see.
        names: What to call the two in the message, such as `("train", "dev")`.

    Raises:
        ValueError: Some prompts, or goals, are in both; the message gives the first of them and their number. Or only
            one of the two has goals.
    """
    train, held_out = list(train), list(held_out)
    if train and held_out and have_goals(train) != have_goals(held_out):
        with_goals, without = names if have_goals(train) else reversed(names)
        raise ValueError(
            f"the {with_goals} prompts have goals, but the {without} prompts have none; expected all or none"
        )
    seen = {_identity(prompt) for prompt in train}
    # A dict, because sets have no order and the message names the first.
    shared = list(dict.fromkeys(found for found in map(_identity, held_out) if found in seen))
    if shared and have_goals(held_out):
        raise ValueError(
            f"{len(shared)} of the {names[1]} goals are goals of the {names[0]} prompts too, expected none; "
            f"the first is {short(shared[0])}"
        )
    if shared:
        raise ValueError(
            f"{len(shared)} of the {names[1]} prompts stand in the {names[0]} prompts too, expected none; "
            f"the first is {short(shared[0])}"
        )


def _identity(prompt: str | Prompt) -> str:
    """What two splits must not share: the goal, whatever the opening, or else the opening."""
    return prompt.goal.text if isinstance(prompt, Prompt) else prompt


def _openings(rows: Rows, split: str, column: str | None) -> list[str]:
    if not rows.holds_strings:
        raise _no_rows(rows, split)
    return _texts(rows, split, _chosen_column(rows.holds_strings, column, rows.name))


def _goals(rows: Rows, split: str, columns: GoalColumns, column: str | None) -> list[Prompt]:
    goals = _texts(rows, split, columns.goal)
    usual = (name for name in (OPENING, *USUAL_COLUMNS) if name in rows.holds_strings)
    column = next(usual, None) if column is None else _existing(rows, column)
    openings = _optional(rows, column, len(goals))
    kinds, contexts = (_optional(rows, name, len(goals)) for name in (columns.category, columns.context))
    return [
        Prompt(Goal(goal, kind, context), opening or "")
        for goal, kind, context, opening in zip(goals, kinds, contexts, openings, strict=True)
    ]


def _goal_columns(rows: Rows, goal: str | None, category: str | None, context: str | None) -> GoalColumns | None:
    """The columns of goals, as named or as known; None if none is named and none is known."""
    known = [
        columns for columns in KNOWN_GOALS if columns.goal == goal or (not goal and columns.goal in rows.holds_strings)
    ]
    if goal is None and not known:
        return None
    beside = known[0] if known else GoalColumns(goal or "")
    there = (name if name in rows.holds_strings else None for name in beside[1:])
    category_there, context_there = there
    return GoalColumns(
        _existing(rows, goal or beside.goal),
        category_there if category is None else _existing(rows, category),
        context_there if context is None else _existing(rows, context),
    )


def _existing(rows: Rows, column: str) -> str:
    if column not in rows.holds_strings:
        raise ValueError(f"prompts {rows.name!r}: no column {column!r}; columns found: {_found(rows)}")
    return column


def _found(rows: Rows) -> str:
    return ", ".join(map(repr, rows.holds_strings)) or "none"


def _texts(rows: Rows, split: str, column: str) -> list[str]:
    """The values of a column that has to hold text in every row."""
    texts = []
    for number, value in rows.column(column):
        found = fault(value)
        if found is not None:
            raise ValueError(f"prompts {rows.name!r}: row {number} holds {found}, expected a string of text")
        texts.append(value)
    if not texts:
        raise _no_rows(rows, split)
    return texts


def _optional(rows: Rows, column: str | None, num_rows: int) -> list[str | None]:
    """The values of a column that may be empty; None for each row without one."""
    if column is None:
        return [None] * num_rows
    texts: list[str | None] = []
    for number, value in rows.column(column):
        blank = value is None or (isinstance(value, str) and not value.strip())
        found = None if blank else fault(value)
        if found is not None:
            raise ValueError(
                f"prompts {rows.name!r}: row {number} holds {found} in {column!r}, expected text or nothing"
            )
        texts.append(None if blank else value)
    return texts


def _no_rows(rows: Rows, split: str) -> ValueError:
    return ValueError(f"prompts {rows.name!r}: no rows in the split {split!r}, expected at least one prompt")


def _chosen_column(holds_strings: Mapping[str, bool], column: str | None, name: str) -> str:
    """Choose the column of the prompts, given which columns hold strings."""
    found = ", ".join(map(repr, holds_strings)) or "none"
    if column is not None:
        if column not in holds_strings:
            raise ValueError(f"prompts {name!r}: no column {column!r}; columns found: {found}")
        return column
    # The usual names come first, whatever they hold: if a broken "text" were skipped in favour of the only sound
    # column, a run would start from that column's ids or labels.
    for usual in USUAL_COLUMNS:
        if usual in holds_strings:
            return usual
    of_strings = [key for key, is_string in holds_strings.items() if is_string]
    if len(of_strings) != 1:
        raise ValueError(
            f"prompts {name!r}: can't tell which column holds the prompts; columns found: {found}; "
            f"expected {' or '.join(map(repr, USUAL_COLUMNS))}, or just one column of strings; "
            "name the right one with `column`"
        )
    return of_strings[0]
