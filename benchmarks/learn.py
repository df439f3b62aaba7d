"""What a tester learns in a run of some minutes, by each algorithm, on prompts that it has not seen.

    python benchmarks/learn.py [--algorithms dpo grpo ppo] [--prompts FILE] [--held-out 100] [--max-words 25]
        [--turns 3] [--output runs/learn] [--SECTION.FIELD VALUE ...]

Trains ``examples/configs/smollm2_ALGORITHM.yaml`` for each, and evaluates the tester as it was before and as each has
left it, in conversations on the same held-out prompts: the first of the file. Of the others those of at most
``--max-words`` words are trained on, since a step's time grows with its tokens. Without a file the held-out prompts are
the 120 bundled test prompts, and those trained on the bundled others. Further fields go to training and to evaluation.

Everything is done by the package's own commands and left in the output folder. What is there already is not done again,
and a run that was stopped goes on. The result has each figure before and after with bootstrap 95% intervals, the paired
difference, and the seconds that training took. Of self-BLEU and distinct n-grams there is no interval: they are no
means over prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, report

from astra_accel.data import load_prompts
from astra_accel.data.prompts import BUNDLED
from astra_accel.evaluation.compare import compare
from astra_accel.evaluation.folder import EVALUATION, EVALUATION_UNTRAINED, EvaluationFolder

UNTRAINED = "untrained"
CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
ALGORITHMS = ("dpo", "grpo", "ppo")
TRAIN_PROMPTS = "train_prompts.json"
SUCCESS, PERPLEXITY, NOT_SELF_BLEU = "attack_success/any_turn", "probe_perplexity/median", "diversity/self_bleu"
FIGURES = (
    SUCCESS,
    "attack_success/turn_1",
    "response_score/mean",
    PERPLEXITY,
    NOT_SELF_BLEU,
    "diversity/distinct_2",
    "reward/mean",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, print and write the figures."""
    options, fields = _parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    trained_on, held_out = _prompt_fields(options)
    of_training = [*trained_on, *fields]
    of_evaluation = [*held_out, *fields, "--rollout.tree_depth", str(options.turns)]
    folders = {UNTRAINED: options.output / EVALUATION_UNTRAINED}
    seconds, differences = {}, {}
    for algorithm in options.algorithms:
        run = options.output / algorithm
        if not (run / "tester").is_dir():
            config = CONFIGS / f"smollm2_{algorithm}.yaml"
            _run("train", "--config", config, "--training.output_dir", run, "--resume", "auto", *of_training)
        if not (folders[UNTRAINED] / "metrics.json").is_file():
            _run("evaluate", run, "--untrained", "--output", folders[UNTRAINED], *of_evaluation)
        _run("evaluate", run, *of_evaluation)
        folders[algorithm] = run / EVALUATION
        seconds[f"training, {algorithm}"] = [training_seconds(run)]
        paired = compare(folders[UNTRAINED], folders[algorithm])["metrics"]
        differences |= {f"{name}, {algorithm} - {UNTRAINED}": paired[name]["difference"] for name in FIGURES}
    metrics = {name: EvaluationFolder(folder).metrics()["metrics"] for name, folder in folders.items()}
    print(table(metrics))
    figures = {f"{name}, {tester}": of_one[name] for tester, of_one in metrics.items() for name in FIGURES}
    return report("learn", options, seconds, ratios(metrics), figures=figures | differences)


def training_seconds(run: Path) -> float:
    """What the phases of all training steps took together: the last record of each holds its seconds."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    by_step = {record["step"]: record for record in map(json.loads, lines)}
    return sum(value for record in by_step.values() for name, value in record.items() if name.startswith("seconds/"))


def ratios(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What each algorithm makes of attack success, perplexity and self-BLEU: after by before."""
    before, *_ = metrics.values()
    quantities = {
        SUCCESS: lambda of_one: of_one[SUCCESS]["value"],
        PERPLEXITY: lambda of_one: of_one[PERPLEXITY]["value"],
        "self-BLEU": lambda of_one: 1 - of_one[NOT_SELF_BLEU]["value"],
    }
    return {
        f"{name}, {tester} / {UNTRAINED}": value_of(after) / value_of(before) if value_of(before) else math.inf
        for tester, after in metrics.items()
        if tester != UNTRAINED
        for name, value_of in quantities.items()
    }


def table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of all testers side by side, in Markdown."""
    lines = [f"| figure | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    lines += [f"| `{name}` | {' | '.join(_cell(of_one[name]) for of_one in metrics.values())} |" for name in FIGURES]
    return "\n".join(lines)


def _cell(figure: Mapping[str, float | None]) -> str:
    interval = f" [{figure['low']:.3g}, {figure['high']:.3g}]" if figure.get("low") is not None else ""
    return f"{figure['value']:.3g}{interval}"


def _run(*command: str | Path) -> None:
    """One command of ``astra-accel``, in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; its error is on the screen.
    """
    subprocess.run([sys.executable, "-m", "astra_accel.cli", *map(str, command)], check=True)


def _prompt_fields(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The fields of training and those of evaluation; what is evaluated here is not evaluated in training too."""
    train, test = [("source", BUNDLED)], [("source", BUNDLED), ("split", "test")]
    if options.prompts != BUNDLED:
        file = options.output / TRAIN_PROMPTS
        file.write_text(json.dumps(_trained_on(options)), encoding="utf-8")
        train = [("source", str(file))]
        test = [("source", options.prompts), ("split", f"train[:{options.held_out}]")]
    return (
        ["--prompts.dev", "null", "--prompts.test", "null", *_fields("prompts.train", train)],
        _fields("prompts.test", test),
    )


def _trained_on(options: argparse.Namespace) -> list[str]:
    """The prompts behind those that are held out, the short ones."""
    prompts = load_prompts(options.prompts)
    short = [prompt for prompt in prompts[options.held_out :] if len(prompt.split()) <= options.max_words]
    if not short:
        raise ValueError(
            f"{options.prompts} has {len(prompts)} prompts, none of at most {options.max_words} words (--max-words) "
            f"behind the first {options.held_out} (--held-out); expected one at least"
        )
    return short


def _fields(section: str, values: Sequence[tuple[str, str]]) -> list[str]:
    return [text for name, value in values for text in (f"--{section}.{name}", value)]


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--prompts", default=BUNDLED, metavar="FILE", help="JSON list of strings or of objects")
    parser.add_argument("--held-out", type=int, default=100, help="prompts of the file to evaluate on (default 100)")
    parser.add_argument("--max-words", type=int, default=25, help="of a prompt that is trained on (default 25)")
    parser.add_argument("--turns", type=int, default=3, help="of a conversation that is evaluated (default 3)")
    parser.add_argument("--output", type=Path, default=Path("runs/learn"), help="where everything is left")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the result is written")
    options, fields = parser.parse_known_args(arguments)
    options.target = None
    return options, fields


if __name__ == "__main__":
    main()
