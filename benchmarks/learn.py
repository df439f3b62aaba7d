"""What a tester learns in a run of some minutes, by each recipe and over several seeds, on prompts it has not seen.

python benchmarks/learn.py [--recipes mle dpo ctb tb grpo ppo] [--seeds 0 1 2] [--prompts FILE] [--held-out 100]
[--max-words 25] [--turns 3] [--judge SCORER] [--jobs 1] [--output runs/learn] [--SECTION.FIELD VALUE ...]

Trains ``examples/configs/smollm2_RECIPE.yaml`` with each seed, and evaluates the tester as it was before and as each
run has left it, in conversations on the same held-out prompts, sampled alike. Without a file, prompts are the bundled
ones, and the test split is held out. Of a file only the prompts of at most ``--max-words`` words are used: the first
``--held-out`` are held out, the next 100 are there for recipes that choose their checkpoint by evaluations in training
(``prompts.dev``), and the rest is trained on. Further fields go to training and evaluation both.

Everything is done by the package's own commands and left in the output folder. What is there already is not done again,
and a run that was stopped continues. The result has each seed's figures with their bootstrap 95% intervals, the mean
over seeds and its difference to the untrained tester with intervals over seeds and prompts (see ``crossed.py``), the
seconds of training, and the probes that were asked. Of self-BLEU and distinct n-grams there is no interval: they are no
means over prompts. Evaluations are judged by HateSonar as well (or by each ``--judge``), by which nothing was trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from common import report
from learn_figures import Evaluation, Recipe, figures_of, probes_asked, table, table_of_seeds, training_seconds
from learn_runs import Runs, add_options, check_alike, checked, recipe_file

from astra_accel.evaluation.folder import EVALUATION

RECIPES = ("mle", "dpo", "ctb", "tb", "grpo", "ppo")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, print and write the figures."""
    options, fields = _parse(arguments)
    configs = {name: recipe_file(name) for name in options.recipes}
    check_alike(configs, fields)
    runs = Runs(options, fields)
    untrained = Evaluation.read(runs.untrained(next(iter(configs.values()))))
    runs.side_by_side(
        [
            lambda name=name, config=config, seed=seed: runs.trained(name, config, seed)
            for name, config in configs.items()
            for seed in options.seeds
        ]
    )
    recipes = {name: read_recipe(runs, name, options.seeds, untrained) for name in configs}
    print(table(untrained, recipes), table_of_seeds(recipes), sep="\n\n")
    ratios = {
        f"{figure}, {name} / untrained": value
        for name, recipe in recipes.items()
        for figure, value in recipe.ratios(untrained).items()
    }
    seconds = {f"training, {name}": recipe.seconds for name, recipe in recipes.items()}
    return report("learn", options, seconds, ratios, figures=figures_of(untrained, recipes))


def read_recipe(runs: Runs, name: str, seeds: Sequence[int], untrained: Evaluation) -> Recipe:
    """What the evaluations of a recipe's runs say.

    Raises:
        EvaluationError: one of them asked otherwise than that of the untrained tester.
    """
    folders = {seed: runs.folder(name, seed) for seed in seeds}
    found = {seed: Evaluation.read(folder / EVALUATION) for seed, folder in folders.items()}
    for seed, folder in folders.items():
        untrained.check_same(found[seed], folder / EVALUATION)
    return Recipe(
        found, [training_seconds(run) for run in folders.values()], [probes_asked(run) for run in folders.values()]
    )


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help=f"default: {' '.join(RECIPES)}")
    add_options(parser, output="runs/learn")
    return checked(parser, arguments)


if __name__ == "__main__":
    main()
