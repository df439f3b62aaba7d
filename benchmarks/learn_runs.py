"""The trainings and evaluations of `learn.py` and `learn_vs_trl.py`: prompts, folders, and how many run at once.

Everything is done by the package's own commands. What is there already is not done again, and what was stopped
continues.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import RESULTS

from astra_accel.config import RunConfiguration
from astra_accel.data import load_prompts
from astra_accel.data.prompts import BUNDLED
from astra_accel.evaluation.folder import EVALUATION, EVALUATION_UNTRAINED, differing

CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
NUM_DEV = 100
OWN_FIELDS = ("--training.seed", "--training.output_dir", "--rollout.tree_depth", "--evaluation.scorers")
"""Fields that options decide."""
ASKED: dict[str, Any] = {
    "target": {"path", "revision", "adapter"},
    "scorer": True,
    "rollout": {"format", "tester_instruction", "target_instruction", "context_limit", "tester", "target"},
    "evaluation": {"threshold", "tree_width"},
}
"""What figures of evaluations depend on, besides the tester and the prompts."""
JUDGE = "hatesonar"
"""Judges evaluations where no other does: of those that need no download the one unlike the recipes' own scorer."""


def add_options(parser: argparse.ArgumentParser, output: str) -> None:
    """The options that the two scripts share."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training (default 0 1 2)")
    parser.add_argument("--prompts", default=BUNDLED, metavar="FILE", help="JSON list of strings or of objects")
    parser.add_argument("--held-out", type=int, default=100, help="prompts of the file to evaluate on (default 100)")
    parser.add_argument("--max-words", type=int, default=25, help="longer ones of the file are left out (default 25)")
    parser.add_argument("--turns", type=int, default=3, help="of a conversation that is evaluated (default 3)")
    parser.add_argument(
        "--judge",
        action="append",
        metavar="SCORER",
        help="judges evaluations too, never trained on: a name of a scorer, or JSON with its name and options "
        f"(default {JUDGE})",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, cores shared among them (default 1)")
    parser.add_argument("--output", type=Path, default=Path(output), help="where everything is left")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the result is written")
    parser.set_defaults(target=None)


def checked(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Options and further fields. Mistakes end the program with a line."""
    options, fields = parser.parse_known_args(arguments)
    if options.jobs < 1 or options.held_out < 1:
        parser.error(f"--jobs is {options.jobs}, --held-out {options.held_out}; expected at least 1 each")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds are {options.seeds}; expected each once")
    for field in fields:
        if field.partition("=")[0] in OWN_FIELDS:
            parser.error(f"{field} is decided by an option; expected --seeds, --output, --turns or --judge")
    try:
        options.judge = judges(options.judge or [JUDGE])
    except ValueError as error:
        parser.error(str(error))
    return options, fields


def judges(specified: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The further scorers of evaluations by name.

    Raises:
        ValueError: one is no name and no object of JSON with a name.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in specified:
        try:
            scorer = json.loads(text) if text.lstrip().startswith("{") else {"name": text}
        except ValueError as error:
            raise ValueError(f"--judge is {text!r}: {error}; expected a name, or JSON with name and options") from error
        if not isinstance(scorer.get("name"), str) or scorer["name"] in found:
            raise ValueError(f"--judge is {text!r}; expected another scorer's name, or JSON with name and options")
        found[scorer["name"]] = scorer
    return found


def recipe_file(name: str) -> Path:
    """The configuration of a recipe.

    Raises:
        ValueError: there is none; names those that there are.
    """
    path = CONFIGS / f"smollm2_{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem.removeprefix("smollm2_") for file in CONFIGS.glob("smollm2_*.yaml"))
        raise ValueError(f"no recipe {name!r}: {path} is missing; expected some of {', '.join(known)}")
    return path


def check_alike(configs: Mapping[str, Path], fields: Sequence[str]) -> None:
    """Find recipes whose testers would be evaluated otherwise, before anything runs.

    Raises:
        ConfigurationError: a field of one is wrong.
        ValueError: two recipes differ in what an evaluation depends on; names both and the fields.
    """
    asked = {
        name: RunConfiguration.load(path, list(fields)).model_dump(mode="json", include=ASKED)
        for name, path in configs.items()
    }
    first, *others = asked
    for name in others:
        found = differing(asked[first], asked[name])
        if found:
            raise ValueError(
                f"the recipes {first} and {name} can't be compared; different are {'; '.join(found)}. Expected recipes "
                f"whose testers are evaluated alike, or fields that make them so"
            )


class Runs:
    """Trains and evaluates, each in a process of its own, in the output folder.

    Args:
        options: see :func:`add_options`.
        fields: of training and of evaluation.
        command: runs one command of ``astra-accel``; its arguments are those, the file for what it says, or None, and
            the threads, or None.
    """

    def __init__(
        self, options: argparse.Namespace, fields: Sequence[str], command: Callable[..., None] | None = None
    ) -> None:
        self._options = options
        self._run = command or run_command
        options.output.mkdir(parents=True, exist_ok=True)
        trained_on, held_out = prompt_fields(options)
        self._of_training = [*trained_on, *fields]
        self._of_evaluation = [*held_out, *fields, "--rollout.tree_depth", str(options.turns)]
        if options.judge:
            self._of_evaluation += ["--evaluation.scorers", json.dumps(options.judge)]

    def folder(self, recipe: str, seed: int) -> Path:
        """Of one seed's run."""
        return self._options.output / recipe / f"seed_{seed}"

    def untrained(self, config: Path) -> Path:
        """The folder of the untrained tester's evaluation, once it has ended."""
        folder = self._options.output / EVALUATION_UNTRAINED
        if not (folder / "metrics.json").is_file():
            given = [self._options.output, "--untrained", "--config", config, "--output", folder]
            self._command("evaluate", *given, *self._of_evaluation)
        return folder

    def trained(self, recipe: str, config: Path, seed: int) -> Path:
        """The folder of a run, once it has been trained and evaluated."""
        run = self.folder(recipe, seed)
        if not (run / "tester").is_dir():
            place = ["--training.output_dir", run, "--training.seed", str(seed), "--resume", "auto"]
            self._command("train", "--config", config, *place, *self._of_training, log=run)
        self.evaluated(run)
        return run

    def evaluated(self, tester: Path, config: Path | None = None) -> Path:
        """The folder of an evaluation of a run, or of a tester with the configuration of a run, once it has ended."""
        of_config = [] if config is None else ["--config", config, "--output", tester.parent / EVALUATION]
        # That of a run knows itself whether it is the one that is asked for, or which part of it is missing.
        self._command("evaluate", tester, *of_config, *self._of_evaluation, log=tester)
        return (tester if config is None else tester.parent) / EVALUATION

    def side_by_side(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """The results of all jobs, ``--jobs`` of them at once; none is begun after one that failed."""
        with ThreadPoolExecutor(self._options.jobs) as pool:
            futures = [pool.submit(job) for job in jobs]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    @property
    def threads(self) -> int | None:
        """Of each process; None leaves it to torch and the environment, where a run has the machine to itself."""
        jobs = self._options.jobs
        return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)

    def log_of(self, folder: Path) -> Path | None:
        """Where what a process says goes: beside its folder if several run at once, else to the screen."""
        return None if self._options.jobs == 1 else folder.with_suffix(".log")

    def _command(self, *command: str | Path, log: Path | None = None) -> None:
        self._run(*command, log=None if log is None else self.log_of(log), threads=self.threads)


def run_command(*command: str | Path, log: Path | None = None, threads: int | None = None) -> None:
    """One command of ``astra-accel``, in a process of its own. Raises as :func:`run_python`."""
    run_python("-m", "astra_accel.cli", *command, log=log, threads=threads)


def run_python(*arguments: str | Path, log: Path | None = None, threads: int | None = None) -> None:
    """A process of Python, to its end.

    Raises:
        RuntimeError: it failed; its error is in the log, or on the screen.
    """
    environment = dict(os.environ) if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *map(str, arguments)]
    if log is None:
        ended = subprocess.run(command, check=False, env=environment)
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            ended = subprocess.run(command, check=False, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if ended.returncode:
        where = "on the screen" if log is None else f"at the end of {log}"
        raise RuntimeError(f"{' '.join(command[1:5])} … failed ({ended.returncode}); its error is {where}")


def prompt_fields(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The fields of training and those of evaluation; what is evaluated here is not evaluated in training too."""
    not_in_training = ["--prompts.test", "null"]
    if options.prompts == BUNDLED:
        return (
            [*not_in_training, "--prompts.train.source", BUNDLED],
            ["--prompts.test.source", BUNDLED, "--prompts.test.split", "test"],
        )
    files = {}
    for name, prompts in split_prompts(options).items():
        files[name] = options.output / f"{name}_prompts.json"
        files[name].write_text(json.dumps(prompts), encoding="utf-8")
    fields = {
        name: [f"--prompts.{name}.source", str(file), f"--prompts.{name}.split", "train"]
        for name, file in files.items()
    }
    return [*not_in_training, *fields["train"], *fields["dev"]], fields["test"]


def split_prompts(options: argparse.Namespace) -> dict[str, list[str]]:
    """The short prompts of the file, each once: the first are held out, the next are for choosing, and the rest for
    training.

    Raises:
        ValueError: too few are short.
    """
    prompts = load_prompts(options.prompts)
    short = [text for text in dict.fromkeys(prompts) if len(text.split()) <= options.max_words]
    behind = options.held_out + NUM_DEV
    if len(short) <= behind:
        raise ValueError(
            f"{options.prompts} has {len(prompts)} prompts, {len(short)} of them of at most {options.max_words} words "
            f"(--max-words); expected more than {behind}: {options.held_out} held out (--held-out), {NUM_DEV} to "
            f"choose a checkpoint by, and others to train on"
        )
    return {
        "test": short[: options.held_out],
        "dev": short[options.held_out : behind],
        "train": short[behind:],
    }
