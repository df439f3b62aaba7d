"""What a tester learns in the same seconds by a recipe of ours and by TRL's GRPOTrainer.

    python benchmarks/learn_vs_trl.py [--recipe mle] [--seeds 0 1 2] [--trl-lr 1e-4] [--trl-batch 16]
        [--trl-generations 8] [--prompts FILE] [--held-out 100] [--max-words 25] [--turns 3] [--judge SCORER]
        [--jobs 1] [--output runs/learn_vs_trl] [--SECTION.FIELD VALUE ...]

For each seed the recipe's run trains first; then TRL trains the same model on the same prompts, with the same LoRA,
sampling, precision, reward and threads, for as many seconds as the steps of that run took (see ``trl_run.py``). Both
testers and the untrained one are evaluated by ``astra-accel evaluate`` on the same held-out prompts. ``--output`` may
be that of ``learn.py``, whose runs are then used. Prompts, further fields, and what is done again are as there.

TRL's learning rate was not tuned. Its guide for LoRA (https://huggingface.co/docs/trl/lora_without_regret) takes 1e-5
and 5e-5; the default here is higher, since minutes are few updates. ``--trl-lr`` tries others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import report
from crossed import crossed_estimate
from learn import read_recipe
from learn_figures import SUCCESS, Evaluation, Recipe, figures_of, ratio, table, table_of_seeds, training_seconds
from learn_runs import Runs, add_options, check_alike, checked, recipe_file, run_python

from astra_accel.evaluation.folder import EVALUATION

SCRIPT = Path(__file__).parent / "trl_run.py"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train both sides, evaluate, print and write the figures."""
    options, fields = _parse(arguments)
    if find_spec("trl") is None:
        raise ImportError("this benchmark needs TRL: pip install 'astra-accel[bench]'")
    config = recipe_file(options.recipe)
    check_alike({options.recipe: config}, fields)
    runs = Runs(options, fields)
    untrained = Evaluation.read(runs.untrained(config))
    runs.side_by_side([lambda seed=seed: both(runs, options, config, seed) for seed in options.seeds])
    ours = read_recipe(runs, options.recipe, options.seeds, untrained)
    theirs = read_trl(options, untrained)
    sides = {options.recipe: ours, "TRL": theirs}
    print(table(untrained, sides), table_of_seeds(sides), sep="\n\n")
    more = crossed_estimate(
        [difference_of(ours.seeds[seed], theirs.seeds[seed]) for seed in options.seeds], untrained.num_prompts
    )
    means = {name: side.means()[SUCCESS]["value"] for name, side in sides.items()}
    return report(
        "learn_vs_trl",
        options,
        {f"training, {name}": side.seconds for name, side in sides.items()},
        {f"{SUCCESS}, {options.recipe} / TRL": ratio(means[options.recipe], means["TRL"])},
        figures=figures_of(untrained, sides) | {f"{SUCCESS}, {options.recipe} - TRL": more.as_dict()},
        packages=["trl"],
    )


def both(runs: Runs, options: argparse.Namespace, config: Path, seed: int) -> None:
    """Train and evaluate one seed of both sides, one after the other, on the same threads."""
    run = runs.trained(options.recipe, config, seed)
    folder = trl_folder(options, seed)
    if not (folder / "trl.json").is_file():
        numbers = {
            "--seconds": training_seconds(run),
            "--lr": options.trl_lr,
            "--batch": options.trl_batch,
            "--generations": options.trl_generations,
        }
        given = [text for name, value in numbers.items() for text in (name, str(value))]
        run_python(SCRIPT, run, "--output", folder, *given, log=runs.log_of(folder), threads=runs.threads)
    runs.evaluated(folder / "tester", run / "config.yaml")


def trl_folder(options: argparse.Namespace, seed: int) -> Path:
    """Where TRL's tester of a seed is, with its evaluation. One of other settings is another one."""
    settings = f"lr_{options.trl_lr:g}_batch_{options.trl_batch}_generations_{options.trl_generations}"
    return options.output / f"trl_{options.recipe}" / settings / f"seed_{seed}"


def read_trl(options: argparse.Namespace, untrained: Evaluation) -> Recipe:
    """What the evaluations of TRL's testers say. Raises as :func:`learn.read_recipe`."""
    folders = {seed: trl_folder(options, seed) for seed in options.seeds}
    told = [json.loads((folder / "trl.json").read_text(encoding="utf-8")) for folder in folders.values()]
    found = {seed: Evaluation.read(folder / EVALUATION) for seed, folder in folders.items()}
    for seed, folder in folders.items():
        untrained.check_same(found[seed], folder / EVALUATION)
    return Recipe(found, [one["seconds"] for one in told], [one["probes"] for one in told])


def difference_of(ours: Evaluation, theirs: Evaluation) -> Any:
    """How much more often the target fails our tester of a seed than TRL's, as a function of the drawn prompts."""
    return lambda weights_RE: ours.resampled[SUCCESS](weights_RE) - theirs.resampled[SUCCESS](weights_RE)


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mle", help="ours (default mle)")
    parser.add_argument("--trl-lr", type=float, default=1e-4, help="TRL's learning rate (default 1e-4)")
    parser.add_argument("--trl-batch", type=int, default=16, help="completions of a TRL step (default 16)")
    parser.add_argument("--trl-generations", type=int, default=8, help="of a prompt (default 8, TRL's own)")
    add_options(parser, output="runs/learn_vs_trl")
    return checked(parser, arguments)


if __name__ == "__main__":
    main()
