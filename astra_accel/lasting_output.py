"""Output that never ends a run, even if its reader goes away, its disk is full or its encoding lacks characters.

A run's results are its files, and what it prints is only for reading. ``| head``, a pager that is quit, a closed
terminal, a redirect to a full disk or Windows' cp1252 are no reasons to lose them. Everything this package prints goes
through a :class:`LastingStream`: the commands replace ``sys.stdout`` and ``sys.stderr`` with one, where all libraries
find it (:func:`lasting_output`), and consoles inside other programs have their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STANDARD_DESCRIPTORS = (0, 1, 2)


class LastingStream:
    """A text stream whose ``write`` and ``flush`` never raise. What can't be written is lost.

    Characters that its encoding lacks are written as escapes (``\\u732b``).

    Args:
        stream: the stream, or the name of one in ``sys`` (``"stdout"``), which is then looked up each time.

    Attributes:
        lost: the first error by which output was lost, if any.
    """

    def __init__(self, stream: Any) -> None:
        self._given = stream
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        """Write a text; it is lost if that fails."""
        stream = self._stream
        if stream is not None:
            try:
                stream.write(_showable(text, stream))
            except (OSError, ValueError) as error:  # ValueError if it is closed
                self._lose(stream, error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush what was written; it is lost if that fails."""
        stream = self._stream
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError) as error:
                self._lose(stream, error)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return bool(self._stream.isatty())
        except (AttributeError, OSError, ValueError):
            return False

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def lost_its_reader(self) -> bool:
        """Whether the reader has gone away, perhaps because it had read enough."""
        return isinstance(self.lost, BrokenPipeError)

    def close_quietly(self) -> None:
        """Write what is still buffered; what can't be written is dropped, or Python would try again when it exits."""
        before, self.lost = self.lost, None
        self.flush()
        stream = self._stream
        if self.lost is not None and stream is not None:
            _discard(stream)
        self.lost = before or self.lost

    @property
    def _stream(self) -> Any:
        stream = getattr(sys, self._given) if isinstance(self._given, str) else self._given
        # While rich shows a bar, it replaces sys.stdout with its own stream, which writes to this one.
        stream = getattr(stream, "rich_proxied_file", stream)
        return None if stream is self else stream

    def _lose(self, stream: Any, error: Exception) -> None:
        self.lost = self.lost or error
        if isinstance(error, BrokenPipeError):
            _discard(stream)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "rich_proxied_file":
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[LastingStream]:
    """A context for a command in which all output goes through lasting streams; yields that of stdout."""
    _open_standard_descriptors()
    before = sys.stdout, sys.stderr
    streams = [stream if isinstance(stream, LastingStream) else LastingStream(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield streams[0]
    finally:
        sys.stdout, sys.stderr = before
        for stream, own in zip(streams, before, strict=True):
            if stream is not own:
                stream.close_quietly()


def _open_standard_descriptors() -> None:
    """Open closed standard descriptors (``>&-``).

    Else the next file that is opened, e.g. a checkpoint, would get the number, and output printed by a library's C code
    would end up in it.
    """
    for descriptor in STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == descriptor:
                os.set_inheritable(null, True)
            else:
                os.dup2(null, descriptor)
                os.close(null)


def _showable(text: str, stream: Any) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        return text.encode("ascii", "backslashreplace").decode("ascii")
    return text


def _discard(stream: Any) -> None:
    """Discard what a stream writes from now on, including what it has buffered."""
    with suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
        stream.flush()
