"""Files of a journal that can't be read, or not now: each error names the file and says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astra_accel.core.prompt import Goal
from astra_accel.endpoints import journal_file
from astra_accel.endpoints.answers import Answer
from astra_accel.endpoints.journal import Journal, JournalError

ANSWER = Answer("answered", "Well. " * 40)


def write(journal: Journal) -> None:
    for number in range(200):
        journal.write(str(number), "target", "", {"model": "m"}, ANSWER)


METHODS: dict[str, Callable[[Journal], Any]] = {
    "find": lambda journal: journal.find("7"),
    "write": write,
    "count_request": lambda journal: journal.count_request("m"),
    "spent": Journal.spent,
}


def filled(folder: Path, process: int = 0) -> Path:
    """The file of a journal with 200 answers on many pages."""
    journal = Journal(folder, process)
    write(journal)
    journal.count_request("m")
    journal.close()
    return folder / f"rank-{process}.sqlite"


def overwrite(file: Path, start: int) -> None:
    """Put other bytes in the place of all that come after the first ones."""
    content = file.read_bytes()
    file.write_bytes(content[:start] + b"\xa5" * (len(content) - start))


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "rank-1.sqlite").write_bytes(b"not a database, but long enough to be taken for one" * 20)
    with pytest.raises(JournalError, match=r"rank-1.sqlite is damaged: .*; move it away to ask everything anew"):
        Journal(tmp_path).join()


@pytest.mark.parametrize("start", [100, 4096, 3 * 4096])
def test_damage_behind_the_header_is_found_at_opening(tmp_path: Path, start: int) -> None:
    overwrite(filled(tmp_path), start)
    with pytest.raises(JournalError, match=r"rank-0.sqlite is damaged: .*; move it away to ask everything anew"):
        Journal(tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_damage_that_comes_later_is_named_too(tmp_path: Path, method: str) -> None:
    file = filled(tmp_path)
    journal = Journal(tmp_path)
    with sqlite3.connect(file) as connection:
        connection.executescript("DROP TABLE questions; DROP TABLE spent;")
    with pytest.raises(JournalError, match=r"rank-0.sqlite is damaged: .*; move it away to ask everything anew"):
        METHODS[method](journal)


def test_a_table_that_is_missing_is_damage(tmp_path: Path) -> None:
    with sqlite3.connect(filled(tmp_path)) as connection:
        connection.execute("DROP TABLE spent")
    with pytest.raises(JournalError, match=r"rank-0.sqlite is damaged: no such table: spent"):
        Journal(tmp_path)


@pytest.mark.parametrize("process", [0, 1])
def test_an_empty_file_is_not_begun_anew(tmp_path: Path, process: int) -> None:
    filled(tmp_path, process).write_bytes(b"")
    with pytest.raises(JournalError, match=rf"rank-{process}.sqlite is empty, .*bring back a copy of it, or move it"):
        Journal(tmp_path).join()


def test_a_process_that_is_killed_while_it_makes_its_file_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(journal_file.os, "replace", killed)
        with pytest.raises(Killed):
            Journal(tmp_path)
    assert not (tmp_path / "rank-0.sqlite").exists()
    Journal(tmp_path, 1).join()  # what was left does not disturb others
    filled(tmp_path)
    assert Journal(tmp_path).find("7") == ANSWER


def test_the_log_of_a_journal_that_was_moved_away_is_not_read_into_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    write(journal)  # and not closed: its answers are in the log
    kept = {name: (tmp_path / f"rank-0.sqlite{name}").read_bytes() for name in ("-wal", "-shm")}
    journal.close()
    (tmp_path / "rank-0.sqlite").unlink()
    for name, content in kept.items():
        (tmp_path / f"rank-0.sqlite{name}").write_bytes(content)
    assert Journal(tmp_path).find("7") is None


def test_a_file_that_another_process_holds_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "PATIENCE", 0.05)
    journal = Journal(tmp_path)
    other = sqlite3.connect(tmp_path / "rank-0.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(JournalError, match=r"rank-0.sqlite is held by another process .*locked.*start again") as caught:
        journal.count_request("m")
    assert "move it away" not in str(caught.value)
    other.execute("ROLLBACK")
    journal.count_request("m")


def test_a_folder_that_can_not_be_written_to_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "rank-0.sqlite").mkdir()
    with pytest.raises(JournalError, match=r"rank-0.sqlite can't be used: unable to open database file"):
        Journal(tmp_path)


def test_another_version_is_named(tmp_path: Path) -> None:
    with sqlite3.connect(filled(tmp_path)) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(JournalError, match=r"rank-0.sqlite is a journal of version 9, expected 2 at most; move it"):
        Journal(tmp_path)


VERSION_1 = """
CREATE TABLE questions (
    key TEXT PRIMARY KEY, asked_of TEXT, model TEXT, place TEXT, request TEXT, outcome TEXT, answer TEXT,
    prompt_tokens INTEGER, completion_tokens INTEGER, time REAL
) WITHOUT ROWID;
CREATE TABLE spent (
    model TEXT PRIMARY KEY, requests INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER
) WITHOUT ROWID;
INSERT INTO questions VALUES ('k', 'target', 'm', '7/0/1', '{}', 'answered', 'Well.', 3, 1, 1.5);
INSERT INTO spent VALUES ('m', 2, 3, 1);
PRAGMA user_version = 1;
"""
"""A journal as it was before questions had goals."""


@pytest.mark.parametrize("process", [0, 1], ids=["one's own", "another's"])
def test_a_journal_without_goals_goes_on_with_them(tmp_path: Path, process: int) -> None:
    with sqlite3.connect(tmp_path / f"rank-{process}.sqlite") as connection:
        connection.executescript(VERSION_1)
    for _ in range(2):
        journal = Journal(tmp_path)
        journal.join()
        assert journal.find("k") == Answer("answered", "Well.")
        assert journal.spent()["m"] == (2, 3, 1)
        journal.write("l", "target", "7/0/2", {"model": "m"}, Answer("answered", "So."), goal=Goal("Be rude", "tone"))
        journal.close()
    with sqlite3.connect(tmp_path / "rank-0.sqlite") as connection:
        found = connection.execute("SELECT key, goal, category, answer FROM questions ORDER BY key").fetchall()
    assert found == [("k", None, None, "Well.")] * (process == 0) + [("l", "Be rude", "tone", "So.")]
