"""The file of a journal: complete or absent when it is made, examined when it is opened, and named in errors."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

VERSION = 2
TABLES = """
CREATE TABLE questions (
    key TEXT PRIMARY KEY, asked_of TEXT, model TEXT, place TEXT, request TEXT, outcome TEXT, answer TEXT,
    prompt_tokens INTEGER, completion_tokens INTEGER, time REAL, goal TEXT, category TEXT
) WITHOUT ROWID;
CREATE TABLE spent (
    model TEXT PRIMARY KEY, requests INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER
) WITHOUT ROWID;
"""
FROM_VERSION_1 = """
ALTER TABLE questions ADD COLUMN goal TEXT;
ALTER TABLE questions ADD COLUMN category TEXT;
"""
PATIENCE = 30.0
"""Seconds to wait for another process that holds a file."""
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
DAMAGED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""A table or column that is missing is an error without a kind of its own."""
ANEW = "move it away to ask everything anew"


class JournalError(ValueError):
    """A journal can't be read or written; the message names the file and what to do."""


def opened(file: Path | None, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection to a journal's file, which is made if it is not there.

    Args:
        file: the file of the journal; None keeps one in memory.
        read_only: whether the file is another process's, which has made it.

    Raises:
        JournalError: the file is empty, damaged, locked, or of another version.
    """
    if file is None:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        _in_one_go(connection, TABLES)
        return connection
    with naming(file):
        if not read_only and not file.exists():
            _make(file)
        address = f"{file.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
        connection = sqlite3.connect(address, uri=True, check_same_thread=False, timeout=PATIENCE)
        version = _examined(connection, file)
        if not read_only:
            if version < VERSION:
                _in_one_go(connection, FROM_VERSION_1)
            # A write-ahead log: an answer costs no wait for the disk, and survives if this process is killed.
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection


@contextmanager
def naming(file: Path | None) -> Iterator[None]:
    """A context in which errors of SQLite name the file, and say what to do.

    Raises:
        JournalError: instead of an error of SQLite.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        # The last byte is the kind of error, those before it say more.
        kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if kind in BUSY:
            raise JournalError(
                f"the journal {file} is held by another process ({error}); wait for it to end, and start again"
            ) from error
        if kind in DAMAGED:
            raise JournalError(f"the journal {file} is damaged: {error}; {ANEW}") from error
        raise JournalError(f"the journal {file} can't be used: {error}; nothing in it is lost") from error


def _make(file: Path) -> None:
    """Make a file with its tables under another name first: what has the file's name is a journal."""
    new = file.with_name(f"{file.name}.new")
    # What a killed process left, and the logs of a journal that was moved away, which SQLite would read into this one.
    for left in (new, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        left.unlink(missing_ok=True)
    with closing(sqlite3.connect(new)) as connection:
        connection.execute("PRAGMA journal_mode = MEMORY")  # no file beside it, which a process could leave behind
        _in_one_go(connection, TABLES)
    os.replace(new, file)


def _in_one_go(connection: sqlite3.Connection, changes: str) -> None:
    """Make tables what they are in this version, or leave them as they are."""
    connection.executescript(f"BEGIN; {changes} PRAGMA user_version = {VERSION}; COMMIT;")


def _examined(connection: sqlite3.Connection, file: Path) -> int:
    """The version of a file that can be read. One of another process may stay an earlier one.

    Raises:
        JournalError: it is empty, damaged, or of another version.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        raise JournalError(
            f"the journal {file} is empty, so answers and what was spent are lost; bring back a copy of it, or {ANEW}"
        )
    if not 1 <= version <= VERSION:
        raise JournalError(f"{file} is a journal of version {version}, expected {VERSION} at most; {ANEW}")
    connection.execute("SELECT 1 FROM questions, spent LIMIT 1").fetchone()
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise JournalError(f"the journal {file} is damaged: {found}; {ANEW}")
    return int(version)
