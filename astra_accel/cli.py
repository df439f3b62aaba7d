"""The command `astra-accel`: a thin layer over the library."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_accel.config import ConfigurationError, RunConfiguration, check_resume
from astra_accel.sharing.commands import add_commands as add_sharing_commands

PACKAGE = Path(__file__).parent


def accelerate_config(name: str) -> Path:
    """The file of a named Accelerate configuration (``cpu_2``, ``multi_gpu``), or the path itself.

    Raises:
        ConfigurationError: there is none of that name; lists those that there are.
    """
    if Path(name).is_file():
        return Path(name)
    # Beside the package in a checkout, inside it in an installed wheel.
    folders = [PACKAGE / "accelerate_configs", PACKAGE.parent / "accelerate_configs"]
    files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    if name not in files:
        raise ConfigurationError(
            f"--accelerate-config: unknown configuration {name!r}; expected a file or one of {', '.join(files)}"
        )
    return files[name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code (2 for a mistake in what was asked).

    Raises:
        Preempted: a signal stopped the run; a ``SystemExit`` with code 75.
    """
    parser = argparse.ArgumentParser(
        prog="astra-accel", description="Train language models that red-team language models.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_report(commands)
    add_sharing_commands(commands)
    known, overrides = parser.parse_known_args(arguments)
    if overrides and not known.takes_fields:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    try:
        return known.run(known, overrides)
    except (FileNotFoundError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a tester as a YAML file says",
        description="Train a tester as a YAML file says. Any field can be set by its section and name: "
        "--training.lr 1e-4.",
        usage="%(prog)s --config FILE [--accelerate-config NAME] [--resume CHECKPOINT|auto] "
        "[--SECTION.FIELD VALUE ...]",
        allow_abbrev=False,
    )
    train.add_argument("--config", help="YAML file with the sections of a run (examples/configs)")
    train.add_argument(
        "--resume", help="a checkpoint folder to go on from; auto: the newest in training.output_dir, if any"
    )
    _add_accelerate_config(train)
    train.set_defaults(run=_train, takes_fields=True)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a trained tester on held-out prompts",
        description="Roll a trained tester out on the test prompts of its run, and write every node and figures with "
        "intervals. An evaluation that was stopped goes on where it was. Any field can be set by its section and name: "
        "--evaluation.threshold 0.8, --prompts.test.source FILE.",
        usage="%(prog)s RUN_OR_TESTER [--untrained] [--config FILE] [--output DIR] [--overwrite] "
        "[--accelerate-config NAME] [--SECTION.FIELD VALUE ...]",
        allow_abbrev=False,
    )
    evaluate.add_argument("path", metavar="RUN_OR_TESTER", help="the output folder of a run, or the folder of a tester")
    evaluate.add_argument("--untrained", action="store_true", help="the tester as it was before, to compare with")
    evaluate.add_argument("--config", help="YAML file with the sections of a run; left out, the run's own")
    evaluate.add_argument("--output", help="where to write; left out, evaluation/ or evaluation_untrained/ there")
    evaluate.add_argument("--overwrite", action="store_true", help="begin anew, whatever the output folder holds")
    _add_accelerate_config(evaluate)
    evaluate.set_defaults(run=_evaluate, takes_fields=True)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="how the figures of two evaluations on the same prompts differ",
        description="How the figures of two evaluations on the same prompts differ, with paired intervals.",
        allow_abbrev=False,
    )
    for name in ("first", "second"):
        compare.add_argument(name, type=Path, help="the folder of an evaluation, or a run with one in evaluation/")
    compare.add_argument("--threshold", type=float, help="a score from which on a response is a success")
    compare.add_argument("--output", type=Path, help="a JSON file to write all figures to")
    compare.set_defaults(run=_compare, takes_fields=False)


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="one HTML file of runs: figures, pictures, conversations",
        description="Write one HTML file that needs nothing else: what was run, figures with intervals, pictures, "
        "conversations to look through, settings; and a summary in Markdown beside it.",
        allow_abbrev=False,
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run, or of an evaluation")
    report.add_argument("--output", type=Path, help="the HTML file; left out, report.html in the first run")
    report.set_defaults(run=_report, takes_fields=False)


def _add_accelerate_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--accelerate-config", help="name or file: start `accelerate launch` with it; without it, one process"
    )


def _train(known: argparse.Namespace, overrides: list[str]) -> int:
    config = RunConfiguration.load(known.config, overrides)  # a mistake is told before processes start
    check_resume(config.training, known.resume)
    job: list[str] = [] if known.config is None else ["--config", known.config]
    job += [] if known.resume is None else ["--resume", known.resume]
    return _start("astra_accel.training.run", [*job, *overrides], known.accelerate_config)


def _evaluate(known: argparse.Namespace, overrides: list[str]) -> int:
    from astra_accel.evaluation.tester import find_tester, load_configuration

    if not known.untrained:
        find_tester(Path(known.path))  # a mistake is told before processes start
    load_configuration(Path(known.path), None if known.config is None else Path(known.config), overrides)
    job = [known.path, *(["--untrained"] if known.untrained else [])]
    job += [] if known.config is None else ["--config", known.config]
    job += [] if known.output is None else ["--output", known.output]
    job += ["--overwrite"] if known.overwrite else []
    return _start("astra_accel.evaluation.run", [*job, *overrides], known.accelerate_config)


def _start(module: str, job: list[str], accelerate_config_name: str | None) -> int:
    """Run a module's ``main`` on a job, here or with ``accelerate launch``."""
    if accelerate_config_name is not None:
        launcher: list[str] = [sys.executable, "-m", "accelerate.commands.launch"]
        launcher += ["--config_file", str(accelerate_config(accelerate_config_name))]
        # In place of this process, which would keep the signals that are meant for the run.
        os.execv(sys.executable, [*launcher, "--module", module, *job])
    return importlib.import_module(module).main(job)


def _compare(known: argparse.Namespace, _: list[str]) -> int:
    from astra_accel.evaluation.compare import compare
    from astra_accel.evaluation.display import show_comparison
    from astra_accel.evaluation.folder import find_evaluation

    comparison = compare(find_evaluation(known.first), find_evaluation(known.second), threshold=known.threshold)
    show_comparison(comparison)
    if known.output is not None:
        known.output.write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    return 0


def _report(known: argparse.Namespace, _: list[str]) -> int:
    from astra_accel.report.collect import read_run
    from astra_accel.report.markdown import render_markdown
    from astra_accel.report.page import render_page
    from astra_accel.training.outputs import write_atomically

    runs = [read_run(path) for path in known.runs]
    page = known.output or known.runs[0] / "report.html"
    write_atomically(page, render_page(runs))
    write_atomically(page.with_suffix(".md"), render_markdown(runs))
    for run in runs:
        if run.num_skipped:
            print(f"{run.path}: {run.num_skipped} lines of metrics.jsonl could not be read and are left out")
    print(f"the report is {page}, its summary {page.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
