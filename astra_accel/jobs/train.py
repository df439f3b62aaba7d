"""One run from its configuration: the job that `examples/train.py` and `astra-accel train` start."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.table import Table

from astra_accel.algorithms import build_algorithm
from astra_accel.config import AUTO, RunConfiguration, TrainingConfiguration, check_resume
from astra_accel.core.scorer import Scorer
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.distributed.collectives import RankError, end_together, holding, on_main
from astra_accel.endpoints.endpoint import EndpointError
from astra_accel.errors import ConfigurationError, Interrupted
from astra_accel.evaluation.evaluator import ASTEvaluator, figures_among, metric_names
from astra_accel.evaluation.figures.dev_figures import DEV_FIGURES, SELF_BLEU, check_dev_figures
from astra_accel.experience.curriculum import check_curriculum
from astra_accel.experience.off_policy import check_algorithm
from astra_accel.files.run_folder import CHECKPOINTS, JOURNAL, OutputFolderError, check_output_dir, check_place
from astra_accel.files.run_lock import RunLock
from astra_accel.jobs.dtypes import settle_dtype, settle_precision
from astra_accel.jobs.endpoints import JobJournal, check_budget
from astra_accel.jobs.prompts import Prompts, check_goals
from astra_accel.lasting_output import lasting_output
from astra_accel.methods.ast.hf_system import HFASTSystem
from astra_accel.methods.ast.sampler import ASTSampler
from astra_accel.methods.ast.value_system import HFASTValueFunctionSystem
from astra_accel.methods.ast.views import Views, check_later_turns, check_prompts
from astra_accel.models.loading.embedded import EmbeddedModelError
from astra_accel.models.roles import RoleFiles, find_roles
from astra_accel.overrides import joined
from astra_accel.paths import expanded
from astra_accel.scorers import build_scorer, check_scorer
from astra_accel.sharing.push import check_push
from astra_accel.training.callbacks.stop_at import check_stop_at
from astra_accel.training.checkpoint.layout import CheckpointError, read_config
from astra_accel.training.checkpoint.verify import WholeCheckpoint, listed_files, newest_together, verify_together
from astra_accel.training.config_text import flat
from astra_accel.training.optim import check_schedule
from astra_accel.training.prompt_digests import digests_of
from astra_accel.training.replay_source import check_source
from astra_accel.training.resume import changes_since, check_bounds_known
from astra_accel.training.trainer import AccelTrainer
from astra_accel.yaml_files import to_yaml

logger = logging.getLogger(__name__)

USER_ERRORS = (
    ValueError,
    ImportError,
    FileNotFoundError,
    NotADirectoryError,
    OutputFolderError,
    CheckpointError,
    EmbeddedModelError,
    EndpointError,
    RankError,  # of the main process, which has told
)
USAGE = "[--config FILE.yaml] [--resume CHECKPOINT|auto] [--SECTION.FIELD VALUE ...]"


def check_models(config: RunConfiguration, prompts: Prompts) -> RoleFiles:
    """The models of a configuration before their weights load, once they are sure to fit the prompts.

    Raises:
        FileNotFoundError, ValueError: a model, a prompt or a limit that does not fit; names the field.
    """
    check_goals(config, prompts.by_name())
    check_budget(config)
    files = find_roles(config.tester, config.target, config.baseline, config.lora)
    views = Views.from_files(files, config.rollout)
    for name, texts in (("train", prompts.train), ("dev", prompts.dev), ("test", prompts.test)):
        if texts:
            check_prompts(texts, views, config.rollout, what=f"prompts.{name}")
    if max(config.rollout.tree_depth, config.eval_depth) > 1:
        check_later_turns(views, config.rollout)
    return files


def build_sampler(
    config: RunConfiguration,
    device: torch.device,
    prompts: Prompts,
    files: RoleFiles | None = None,
    scorer: Scorer | None = None,
) -> ASTSampler:
    """The models, the scorer and the sampler of a configuration. Mistakes are found before weights load.

    Args:
        config: the configuration of the whole run.
        device: the device of the models and the scorer.
        prompts: the prompts of the configuration.
        files: what :func:`check_models` found already, if it was asked.
        scorer: the scorer of the configuration, if it is made already.

    Raises:
        FileNotFoundError, ValueError: as :func:`check_models`, or a scorer that does not fit; names the field.
    """
    if files is None:
        files = check_models(config, prompts)
    if scorer is None:
        scorer = build_scorer(config.scorer.name, **{"device": device, **config.scorer.options})
    system = system_class(config).from_files(
        files, scorer, device, config.rollout, reward=config.reward, compute=config.compute, seed=config.training.seed
    )
    return ASTSampler(
        system,
        prompts.train,
        config.rollout.tree_width,
        config.rollout.tree_depth,
        prompts.dev or None,
        episodes_per_prompt=config.rollout.episodes_per_prompt,
        eval_depth=config.evaluation.tree_depth,
        few_shot=config.rollout.few_shot,
    )


def system_class(config: RunConfiguration) -> type[HFASTSystem]:
    """The system whose tester can do what the algorithm needs."""
    algorithm = build_algorithm(config.algorithm.name, None, **config.algorithm.options)
    return HFASTValueFunctionSystem if algorithm.needs_values else HFASTSystem


def build_trainer(
    config: RunConfiguration,
    resume: str | Path | None = None,
    accelerator: Accelerator | None = None,
    lock: RunLock | None = None,
) -> tuple[AccelTrainer, Prompts]:
    """The trainer of a configuration and its prompts. Mistakes are found before weights load.

    Args:
        config: the configuration of the whole run.
        resume: the checkpoint that the run continues from, or "auto"; None begins a new run.
        accelerator: the processes to train on; None makes one as configured.
        lock: the lock of the output folder, if the caller holds it already; None takes it while the trainer trains.

    Raises:
        OutputFolderError: the output folder holds another run.
        FolderInUseError: another run writes to it now.
        CheckpointError: ``resume`` is neither "auto" nor a whole checkpoint.
        SharingError: the tester is to be uploaded at the end, and could not be.
        BudgetReached: earlier launches used up the budget, so that not even the first question may be asked.
        ConfigurationError, FileNotFoundError, ValueError: something does not fit; names the field.
    """
    if lock is None and config.training.output_dir is not None:
        RunLock(config.training.output_dir).check_free()
    _check_folders(config.training, resume)
    if config.training.eval_steps is not None and config.prompts.dev is None:
        raise ConfigurationError("training.eval_steps is set, but prompts.dev is null; expected held-out prompts")
    # Made once without a system, only to find a bad option, or trees that don't fit, before weights load.
    algorithm = build_algorithm(config.algorithm.name, None, **config.algorithm.options)
    check_algorithm(algorithm, config.rollout, config.training.replay)
    check_scorer(config.scorer.name, config.scorer.options)
    check_schedule(config.training)
    check_bounds(config)
    check_stop_at(config.training.stop_at, [f"reward/{name}" for name in ("mean", "std", "max", *_terms(config))])
    check_curriculum(config.training.curriculum, ["reward", *_terms(config)])
    if accelerator is None:
        accelerator = _accelerator(config.training)
    whole = _verified(config.training, resume, accelerator)
    checkpoint = None if whole is None else whole.path
    on_main(accelerator, lambda: check_place(config.training))
    on_main(accelerator, lambda: check_push(config.training))
    source = None if config.training.replay is None else config.training.replay.source
    if source is not None and checkpoint is None:
        on_main(accelerator, lambda: check_source(source, algorithm, to_yaml(config)))
    prompts = Prompts(config)
    before = None if checkpoint is None else flat(read_config(checkpoint))
    files = check_models(config, prompts)
    fresh, output = checkpoint is None and config.training.overwrite_output_dir, config.training.output_dir
    journal = JobJournal(accelerator, config.budget, None if fresh or output is None else output / JOURNAL)
    journal.check(files.endpoint, [config.scorer])
    config = settle_precision(settle_dtype(config, files, accelerator, before), accelerator)
    if checkpoint is not None:
        on_main(accelerator, lambda: check_bounds_known(checkpoint, config.training.best_bounds))
        digests, allowed = digests_of(prompts.by_name()), config.training.allow_changed_prompts
        on_main(accelerator, lambda: changes_since(checkpoint, to_yaml(config), digests, allowed))
    options = {"device": accelerator.device, **config.scorer.options}
    scorer = journal.built(lambda: build_scorer(config.scorer.name, **options))
    sampler = build_sampler(config, accelerator.device, prompts, files, scorer)
    algorithm = build_algorithm(config.algorithm.name, sampler.system, **config.algorithm.options)
    evaluator = ASTEvaluator(sampler, seeds=prompts.dev or None, figures=figures_among(config.training.watched_metrics))
    trainer = AccelTrainer(
        config.training,
        sampler,
        algorithm,
        accelerator=accelerator,
        evaluator=evaluator,
        run_config=config,
        prompts=prompts.by_name(),
        lock=lock,
    )
    trainer.adopt_verified(whole)
    journal.keep([sampler.system], trainer.folder.path / JOURNAL, fresh=fresh)
    return trainer, prompts


def check_bounds(config: RunConfiguration) -> None:
    """Find bounds on figures that the evaluations in training don't have, or that bound nothing.

    Raises:
        ConfigurationError: names the figure, and those that there are.
        ImportError: a package that a figure needs is not installed; names the extra.
    """
    known = [*metric_names(_terms(config)), *DEV_FIGURES]
    for name, bound in (config.training.best_bounds or {}).items():
        if name not in known:
            raise ConfigurationError(
                f"training.best_bounds has {name!r}, which no evaluation in training has; expected some of "
                f"{', '.join(known)}"
            )
        if name.startswith("diversity/") and bound.max is not None:
            raise ConfigurationError(
                f"training.best_bounds.{name} is at most {bound.max:g} times the untrained tester's, but it is higher "
                f"where probes differ more; expected {{min: FACTOR}}, or a bound on {SELF_BLEU}, which is lower there"
            )
    check_dev_figures(figures_among(config.training.watched_metrics))


def _terms(config: RunConfiguration) -> list[str]:
    """The names of the terms of the configured reward."""
    weights = {name.removesuffix("_weight"): value for name, value in config.reward.model_dump().items()}
    further = [name for name in ("length", "repetition", "self_bleu_novelty", "embedding_novelty") if weights[name]]
    return ["combined_score", "response_score", "naturalness", *further]


def _accelerator(config: TrainingConfiguration) -> Accelerator:
    return make_accelerator(config, find_unused_parameters=not HFASTSystem.uses_every_parameter)


def run(trainer: AccelTrainer, prompts: Prompts, resume: str | Path | None = None, *, evaluates: bool = True) -> None:
    """Train, with the figures on the test prompts before and after if it ``evaluates`` and there are such prompts."""
    evaluates = evaluates and bool(prompts.test)
    checkpoint = trainer.find_checkpoint(resume)
    before = trainer.evaluate(prompts.test) if evaluates and checkpoint is None else {}
    trainer.train(checkpoint or resume)
    try:
        after = trainer.evaluate(prompts.test) if evaluates else {}
    except Interrupted as interruption:
        if not interruption.in_order:
            raise
        trainer.display.say(f"no figures after training: {interruption}")
        after = {}
    _show(trainer, before, after, len(prompts.test))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line and run. Mistakes in it are one message, without a traceback; exit code 2.

    Raises:
        Preempted: a signal stopped the run; a ``SystemExit`` with code 75.
    """
    with lasting_output():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="train", usage=f"%(prog)s {USAGE}", allow_abbrev=False)
    parser.add_argument("--config", type=expanded, help="YAML file with the sections of a run (examples/configs)")
    parser.add_argument(
        "--resume",
        type=expanded,
        help="a checkpoint folder to resume from; auto: the newest in training.output_dir, if any",
    )
    known, overrides = parser.parse_known_args(joined(sys.argv[1:] if arguments is None else arguments))
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        config = RunConfiguration.load(known.config, overrides)
        check_resume(config.training, known.resume)
        accelerator = _accelerator(config.training)
    except USER_ERRORS as error:
        return mistake(error)
    with ExitStack() as stack:
        try:
            folder = config.training.output_dir
            # A run without a folder gets a new one, which is nobody else's.
            lock = None if folder is None else stack.enter_context(holding(accelerator, RunLock(folder)))
            trainer, prompts = build_trainer(config, known.resume, accelerator, lock)
        except USER_ERRORS as error:
            return mistake(error)
        except Interrupted as interruption:
            end_together(accelerator)
            return interrupted(interruption)
        try:
            run(trainer, prompts, known.resume, evaluates=config.evaluation.around_training)
        except Interrupted as interruption:
            return interrupted(interruption)
    end_together(trainer.accelerator)
    return 0


def mistake(error: Exception) -> int:
    """Tell a mistake in one message, on one of the processes, which all found it; the exit code for it."""
    logger.debug("the mistake was found here", exc_info=True)
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr)
    return 2


def interrupted(interruption: Interrupted) -> int:
    """Tell what interrupted a job, on one of the processes, which all know it; the exit code for it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"interrupted: {interruption}", file=sys.stderr)
    return interruption.exit_code


def _check_folders(config: TrainingConfiguration, resume: str | Path | None) -> None:
    """Find what can be found of the folders before there is an accelerator."""
    check_resume(config, resume)
    if resume == AUTO:
        return
    checkpoint = None if resume is None else Path(resume)
    check_output_dir(config, resuming=checkpoint is not None)
    if checkpoint is not None:
        listed_files(checkpoint)


def _verified(
    config: TrainingConfiguration, resume: str | Path | None, accelerator: Accelerator
) -> WholeCheckpoint | None:
    """The checkpoint that a run will resume from, verified before its models load. All processes together."""
    if resume == AUTO and config.output_dir is not None:
        checkpoint, _ = newest_together(accelerator, config.output_dir / CHECKPOINTS)
        check_output_dir(config, resuming=checkpoint is not None, restarting=True)
        return checkpoint
    return None if resume is None else verify_together(accelerator, Path(resume))


def _show(trainer: AccelTrainer, before: dict[str, float], after: dict[str, float], num_prompts: int) -> None:
    if not after:
        return
    table = Table("on held-out prompts", "before", "after", title=f"{num_prompts} test prompts, one conversation each")
    for name, value in after.items():
        table.add_row(name, f"{before[name]:.4f}" if name in before else "", f"{value:.4f}")
    trainer.display.console.print(table)
    trainer.display.say(f"the tester is in {trainer.folder.tester}, all files of the run in {trainer.folder.path}")


if __name__ == "__main__":
    sys.exit(main())
