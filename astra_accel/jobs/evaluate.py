"""One evaluation from its configuration: the job that `examples/evaluate.py` and `astra-accel evaluate` start."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator

from astra_accel.algorithms import build_algorithm
from astra_accel.config import RunConfiguration, ScorerConfiguration
from astra_accel.core.prompt import Prompt, as_json
from astra_accel.core.scorer import Scorer
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.distributed.collectives import end_together, holding, on_main
from astra_accel.errors import ConfigurationError, Interrupted
from astra_accel.evaluation.benign import Benign
from astra_accel.evaluation.display import show_metrics
from astra_accel.evaluation.evaluator import ASTEvaluator, check_scorer_names
from astra_accel.evaluation.figures.diversity import tokenize
from astra_accel.evaluation.folder import EVALUATION, EVALUATION_UNTRAINED, FIELD, FILES, TRIES, EvaluationFolder
from astra_accel.evaluation.loop import check_seeds
from astra_accel.evaluation.tester import find_tester, load_configuration, settings_of, with_tester
from astra_accel.files.atomic import README
from astra_accel.files.folders import check_writable
from astra_accel.files.run_folder import JOURNAL, TESTER
from astra_accel.files.run_lock import RunLock
from astra_accel.jobs.dtypes import settle_dtype
from astra_accel.jobs.endpoints import JobJournal
from astra_accel.jobs.prompts import Prompts, load_source
from astra_accel.jobs.train import USER_ERRORS, build_sampler, check_models, interrupted, mistake
from astra_accel.lasting_output import lasting_output
from astra_accel.methods.ast.rewards.sentence_embedder import SentenceEmbedder
from astra_accel.methods.ast.views import Views, check_requests
from astra_accel.overrides import joined
from astra_accel.paths import user_path
from astra_accel.scorers import build_scorer, check_scorer, needs_goal
from astra_accel.sharing.evaluated import update_card
from astra_accel.training.config_text import flat

logger = logging.getLogger(__name__)

USAGE = "RUN_OR_TESTER [--untrained] [--config FILE.yaml] [--output DIR] [--overwrite] [--SECTION.FIELD VALUE ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes besides fields of the configuration."""
    parser.add_argument(
        "path", type=user_path, metavar="RUN_OR_TESTER", help="the output folder of a run, or of a tester"
    )
    parser.add_argument(
        "--untrained",
        action="store_true",
        help=f"the tester as it was before training, to compare with; written to {EVALUATION_UNTRAINED}/",
    )
    parser.add_argument(
        "--config", type=user_path, help="YAML file with the sections of a run; left out, the run's own"
    )
    parser.add_argument(
        "--output",
        type=user_path,
        help=f"where to write; left out, {EVALUATION}/ there. What is written already is kept",
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew, whatever the output folder holds")


def build_evaluator(
    config: RunConfiguration,
    tester: Path | None,
    accelerator: Accelerator,
    prompts: Prompts,
    journal: JobJournal,
    *,
    of_run: bool = False,
) -> ASTEvaluator:
    """The evaluator of a tester's folder (None: of the untrained tester), on the test prompts.

    Mistakes are found before weights load.

    Args:
        config: the configuration of the evaluation.
        tester: the folder of the tester.
        accelerator: the processes to evaluate on.
        prompts: the prompts of the configuration.
        journal: the journal of what endpoints are asked.
        of_run: whether the configuration is that of the run which trained the tester.

    Raises:
        BudgetReached: earlier launches used up the budget, so that not even the first question may be asked.
        ConfigurationError, FileNotFoundError, ValueError, ImportError: something does not fit; names it.
    """
    check_scorer_names(config.evaluation.scorers)
    tokenize([])  # sacrebleu is asked for now, not after the rollouts
    # All mistakes come before the first weights, those of scorers too.
    build_algorithm(config.algorithm.name, None, **config.algorithm.options)
    check_scorer(config.scorer.name, config.scorer.options)
    for name, scorer in config.evaluation.scorers.items():
        check_scorer(scorer.name, scorer.options, f"evaluation.scorers.{name}")
    judge = config.evaluation.refusal_scorer
    check_scorer(judge.name, judge.options, "evaluation.refusal_scorer")
    requests = _requests(config)
    if requests and needs_goal(judge.name, judge.options):
        raise ConfigurationError("evaluation.refusal_scorer judges by a goal, and a harmless request has none")
    evaluated = with_tester(config, tester)
    before = flat(config.to_yaml()) if of_run else None
    files = check_models(evaluated, prompts)
    check_requests(requests, Views.from_files(files, evaluated.rollout), evaluated.rollout, "evaluation.benign")
    held_out, of_refusals = config.evaluation.scorers, [judge] if requests else []
    journal.check(files.endpoint, [config.scorer, *held_out.values(), *of_refusals])
    evaluated = settle_dtype(evaluated, files, accelerator, before)

    def built(scorer: ScorerConfiguration) -> Scorer:
        options = {"device": accelerator.device, **scorer.options}
        return journal.built(lambda: build_scorer(scorer.name, **options))

    scorers = {name: built(scorer) for name, scorer in held_out.items()}
    refusals = built(judge) if requests else None
    benign = Benign(requests, refusals) if requests else None
    model = config.evaluation.embedding_model
    embedder = (
        None
        if model is None
        else SentenceEmbedder(model, device=accelerator.device, field="evaluation.embedding_model")
    )
    sampler = build_sampler(evaluated, accelerator.device, prompts, files, built(config.scorer))
    sampler.eval_width = config.evaluation.tree_width
    sampler.eval_tries = config.evaluation.tries
    return ASTEvaluator(
        sampler,
        prompts.test,
        config.evaluation.threshold,
        scorers=scorers,
        embed=None if embedder is None else embedder.embed,
        num_resamples=config.evaluation.num_resamples,
        benign=benign,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line and evaluate. Mistakes in it are one message, without a traceback; exit code 2."""
    with lasting_output():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="evaluate", usage=f"%(prog)s {USAGE}", allow_abbrev=False)
    add_arguments(parser)
    known, overrides = parser.parse_known_args(joined(sys.argv[1:] if arguments is None else arguments))
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    folder = known.output or known.path / (EVALUATION_UNTRAINED if known.untrained else EVALUATION)
    with ExitStack() as stack:
        try:
            tester = None if known.untrained else find_tester(known.path)
            config = load_configuration(known.path, known.config, overrides)
            prompts = _prompts(config)
            settings, episodes_at_once = settings_of(config, tester), config.evaluation.episodes_at_once
            if not known.overwrite:
                seeds = list(map(as_json, prompts.test))
                asked = {"seeds": seeds, "episodes_at_once": episodes_at_once, "settings": settings}
                EvaluationFolder(folder).check(asked | {TRIES: config.evaluation.tries})
            accelerator = _accelerator(config)
            lock = stack.enter_context(holding(accelerator, RunLock(folder, FIELD)))
            on_main(accelerator, lambda: check_writable(folder, FIELD, FILES))
            journal = JobJournal(accelerator, config.budget, None if known.overwrite else folder / JOURNAL)
            evaluator = build_evaluator(config, tester, accelerator, prompts, journal, of_run=known.config is None)
            asking = [evaluator.sampler.system, *evaluator.scorers.values()]
            asking += [] if evaluator.benign is None else [evaluator.benign.scorer]
            journal.keep(asking, folder / JOURNAL, fresh=known.overwrite)
        except USER_ERRORS as error:
            return mistake(error)
        except Interrupted as interruption:
            end_together(accelerator)
            return interrupted(interruption)
        try:
            metrics = evaluator.evaluate_to(
                folder,
                accelerator=accelerator,
                settings=settings,
                episodes_at_once=episodes_at_once,
                jsonl=config.evaluation.jsonl,
                overwrite=known.overwrite,
                lock=lock,
            )
        except Interrupted as interruption:
            return interrupted(interruption)
        if accelerator.is_main_process:
            show_metrics(metrics, folder)
            if folder == known.path / EVALUATION:
                update_card(known.path / TESTER / README, known.path)
    end_together(accelerator)
    return 0


def _prompts(config: RunConfiguration) -> Prompts:
    if config.prompts.test is None:
        raise ConfigurationError("prompts.test is null; expected held-out prompts to evaluate on")
    prompts = Prompts(config)
    check_seeds(prompts.test)
    return prompts


def _requests(config: RunConfiguration) -> list[str]:
    """The harmless requests to ask, if any; of goals their texts."""
    found = load_source(config.evaluation.benign, "evaluation.benign")
    return [each.goal.text if isinstance(each, Prompt) else each for each in found]


def _accelerator(config: RunConfiguration) -> Accelerator:
    # Of a configuration for training, batch size and trackers have no part here.
    without = {"batch_size": int(os.environ.get("WORLD_SIZE", "1")), "log_with": [], "output_dir": None}
    return make_accelerator(config.training.model_copy(update=without))


if __name__ == "__main__":
    sys.exit(main())
