import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from astra_accel.lasting_output import LastingStream, lasting_output


def run(code, shell, **environment):
    """Run Python code in a shell's line, where ``"$PY" -c "$CODE"`` stands for it."""
    return subprocess.run(
        ["bash", "-c", shell],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PY": sys.executable, "CODE": code, **environment},
    )


PRINTING = """
import sys
from astra_accel.lasting_output import lasting_output
with lasting_output():
    for _ in range(20000):
        print("a line")
    print("the end", file=sys.stderr)
"""


class TestLastingStream:
    def test_a_text_comes_through_as_it_is(self):
        inner = io.StringIO()

        print("猫", "a", file=LastingStream(inner))

        assert inner.getvalue() == "猫 a\n"

    @pytest.mark.parametrize(
        ("encoding", "expected"),
        [
            ("cp1252", "caf\xe9 \\u732b \\ud83d|"),
            ("ascii", "caf\\xe9 \\u732b \\ud83d|"),
            ("utf-8", "caf\xe9 猫 \\ud83d|"),
        ],
    )
    def test_what_an_encoding_can_t_show_is_an_escape(self, encoding, expected):
        inner = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        stream = LastingStream(inner)

        stream.write("caf\xe9 猫 \ud83d|")
        stream.flush()

        assert inner.buffer.getvalue().decode(encoding) == expected
        assert stream.lost is None

    def test_a_closed_or_missing_stream_loses_what_is_written(self, monkeypatch):
        closed = io.StringIO()
        closed.close()
        stream = LastingStream(closed)
        print("a", file=stream, flush=True)
        assert isinstance(stream.lost, ValueError)

        monkeypatch.setattr(sys, "stdout", None)
        print("a", file=LastingStream("stdout"), flush=True)
        assert not LastingStream("stdout").isatty()

    def test_a_bar_of_rich_does_not_write_to_itself(self, monkeypatch):
        inner = io.StringIO()
        inner.isatty = lambda: True
        monkeypatch.setattr(sys, "stdout", inner)
        console = Console(file=LastingStream("stdout"), force_terminal=True)

        with Progress(console=console) as progress:
            progress.add_task("bar", total=1)
            print("in between")

        assert "in between" in inner.getvalue()
        assert "bar" in inner.getvalue()


class TestLastingOutput:
    def test_streams_are_put_back(self):
        before = sys.stdout, sys.stderr

        with lasting_output():
            assert sys.stdout is not before[0]

        assert (sys.stdout, sys.stderr) == before

    @pytest.mark.parametrize(
        "shell",
        [
            'set -o pipefail; "$PY" -c "$CODE" | head -1 > /dev/null',
            '"$PY" -c "$CODE" > /dev/full',
            '"$PY" -c "$CODE" >&-',
            '"$PY" -c "$CODE" <&- >&-',
        ],
    )
    def test_lost_output_ends_no_program_in_python_s_own_end_either(self, shell):
        result = run(PRINTING, shell)

        assert (result.returncode, result.stderr) == (0, "the end\n")

    def test_no_file_gets_the_number_of_a_closed_stdout(self, tmp_path):
        code = f"""
import os
from astra_accel.lasting_output import lasting_output
with lasting_output():
    with open({str(tmp_path / "checkpoint")!r}, "w") as file:
        os.system("echo from C")
        file.write("weights")
"""
        run(code, '"$PY" -c "$CODE" >&- 2>&-')

        assert (tmp_path / "checkpoint").read_text() == "weights"


class TestCommands:
    def test_a_reader_that_goes_away_ends_a_filter_quietly(self):
        result = run("", 'set -o pipefail; "$PY" -m astra_accel.cli init - --full | head -1')

        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("# A run of astra_accel")

    def test_a_result_that_a_full_disk_swallows_is_an_error(self):
        result = run("", '"$PY" -m astra_accel.cli init - > /dev/full')

        assert result.returncode == 1
        assert "error: the result could not be printed: " in result.stderr

    def test_help_is_cut_off_quietly(self):
        result = run("", 'set -o pipefail; "$PY" -m astra_accel.cli train --help | true')

        assert (result.returncode, result.stderr) == (0, "")
