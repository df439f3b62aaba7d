"""How large a report of a long run is, how long it takes to write, to write again after one more step, and to open.

    python benchmarks/report.py [--steps 100] [--episodes 72] [--width 2] [--depth 3] [--repeats 3]

The run is made up: nodes of 40 words, 100,000 of them by default. It is opened in Chromium, where there is one, from
the request to the load event, by which the script of the page has run. The ratio is what a watch saves, which reads
those files of nodes that are new.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the browser and the made-up run of the tests

from common import RESULTS, interleaved, medians, report

from astra_accel.report.collect import RunReader
from astra_accel.report.watch import write_report
from tests.helpers.browser import CHROMIUM, browser_page
from tests.helpers.written_runs import write_run


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the size and the times."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run, page = Path(folder) / "run", Path(folder) / "report.html"
        write_run(run, num_steps=options.steps, episodes_a_step=options.episodes, tree=(options.width, options.depth))
        measurements = {
            "written": lambda: _timed(lambda: write_report([RunReader(run).read()], page)),
            "written again": lambda: _written_again(run, page),
        }
        if CHROMIUM is not None:
            measurements["opened"] = lambda: _opened(page, Path(tempfile.mkdtemp(dir=folder)))
        measured = interleaved(measurements, options.repeats)
        nodes = sum(len(part.scores) for part in RunReader(run).read().training)
        figures = {"nodes": nodes, "size of the page, MB": page.stat().st_size / 1e6}
    most = medians(measured)
    return report(
        "report",
        options,
        measured,
        {"written / written again": most["written"] / most["written again"]},
        figures=figures,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 100), ("episodes", 72), ("width", 2), ("depth", 3), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the result is written")
    parser.set_defaults(prompts="made up", target=None)
    return parser.parse_args(arguments)


def _written_again(run: Path, page: Path) -> float:
    """The time of a watch's next report, when the last training step has come in."""
    last = max((run / "rollouts").glob("*.parquet"))
    kept = run / last.name
    last.rename(kept)
    reader = RunReader(run)
    write_report([reader.read()], page)
    shutil.move(kept, last)
    return _timed(lambda: write_report([reader.read()], page))


def _opened(page: Path, profile: Path) -> float:
    with browser_page(profile) as browser:
        return browser.open(page)


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
