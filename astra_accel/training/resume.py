"""Resuming from a checkpoint: which one, and what has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from astra_accel.config import Bound
from astra_accel.training.callbacks.bounds import check_untrained
from astra_accel.training.checkpoint import layout as checkpoints
from astra_accel.training.checkpoint.layout import Training
from astra_accel.training.checkpoint.load import load_checkpoint
from astra_accel.training.checkpoint.verify import WholeCheckpoint
from astra_accel.training.config_text import changed_fields, flat
from astra_accel.training.prompt_digests import Digests, changed_prompts
from astra_accel.training.run_context import RunContext

# Decided by the saved state of the optimizer and the schedule: a new value would be overridden, or would not fit.
FIXED_ON_RESUME = tuple(
    f"training.{name}" for name in ("optimizer", "lr", "weight_decay", "lr_scheduler", "warmup_steps")
)
# A changed algorithm would continue with the optimizer state and the best evaluation of the old objective.
ALGORITHM = "algorithm.name"
# What an evaluation's figures depend on besides the tester.
EVALUATED = (
    *("training.num_eval_episodes", "evaluation.tree_depth", "prompts.dev", "rollout."),
    *("target.", "baseline.", "scorer.", "reward."),
)
# What a replay's examples were made with: their contents would otherwise mean something else.
FIXED_WITH_REPLAY = ("algorithm.", "baseline")


def resume_from(run: RunContext, checkpoint: WholeCheckpoint, training: Training) -> None:
    """Load weights, state and progress, and report what has changed since. All processes must call it.

    Args:
        run: the run to resume.
        checkpoint: a verified checkpoint.
        training: what the checkpoint is loaded into.

    Raises:
        CheckpointError: see :func:`changes_since` and :func:`check_bounds_known`; or the weights are another model's.
    """
    path = checkpoint.path
    changes = changes_since(path, training.config_yaml, training.prompts, run.config.allow_changed_prompts)
    for change in changes:
        run.display.say(f"changed since {path.name}: {change}")
    if run.config.best_bounds and any(change.startswith(EVALUATED) for change in changes):
        run.display.say(
            "training.best_bounds stay relative to the untrained tester's figures from before the run was changed"
        )
    check_bounds_known(path, run.config.best_bounds)
    run.state = load_checkpoint(training, checkpoint)
    if training.replay is not None and not checkpoints.has_replay(path):
        run.display.say(f"{path} has no {checkpoints.REPLAY}: the replay begins empty")
    if training.curriculum is not None and len(training.curriculum) == 0:
        run.display.say(f"{path} has no prompts for the curriculum: it begins empty")
    run.display.say(f"resumed from {path} at step {run.state.step}")


def check_bounds_known(checkpoint: Path, bounds: Mapping[str, Bound] | None) -> None:
    """Reject bounds that a resumed run can't apply, since its tester is no longer the untrained one.

    Raises:
        CheckpointError: the run that wrote the checkpoint did not save the untrained tester's value of a bounded
            figure.
    """
    known = checkpoints.read_state(checkpoint).untrained or {}
    unknown = [name for name in bounds or {} if name not in known]
    if unknown:
        raise checkpoints.CheckpointError(
            f"training.best_bounds has {', '.join(unknown)}, but {checkpoint} does not know the untrained tester's "
            f"value{'' if len(unknown) == 1 else 's'}: its run began without. Resume with bounds on "
            f"{', '.join(known) or 'nothing'}, or begin a new run"
        )
    if bounds:
        check_untrained(bounds, known)


def changes_since(checkpoint: Path, config_yaml: str, prompts: Digests, allow_changed_prompts: bool) -> list[str]:
    """The fields and prompts that have changed since a checkpoint was written, with both values.

    Args:
        checkpoint: a whole checkpoint.
        config_yaml: the current configuration.
        prompts: the current prompts.
        allow_changed_prompts: whether prompts may have changed although the configuration names the same ones.

    Raises:
        CheckpointError: its algorithm, optimizer or schedule differs; or its prompts differ although none of their
            fields has changed; or its replay, which is to continue, was made with other options or another baseline.
    """
    before = checkpoints.read_config(checkpoint)
    _check_algorithm(checkpoint, flat(before).get(ALGORITHM), flat(config_yaml).get(ALGORITHM))
    changes = changed_fields(before, config_yaml)
    fixed = [change for name, change in changes.items() if name in FIXED_ON_RESUME]
    if fixed:
        raise checkpoints.CheckpointError(
            f"{checkpoint} holds the state of another optimizer or schedule: {'; '.join(fixed)}. Resume with the "
            f"values that it has, or start a new run from its tester"
        )
    if checkpoints.has_replay(checkpoint) and "training.replay.size" in flat(config_yaml):
        unlike = [change for name, change in changes.items() if name.startswith(FIXED_WITH_REPLAY)]
        if unlike:
            raise checkpoints.CheckpointError(
                f"{checkpoint} has the replay of another algorithm or baseline: {'; '.join(unlike)}. Resume with the "
                f"values that it has, or without the replay by --training.replay null"
            )
    others = changed_prompts(checkpoints.read_prompts(checkpoint), prompts)
    unasked = [line for name, line in others.items() if not _names_others(name, changes)]
    if unasked and not allow_changed_prompts:
        raise checkpoints.CheckpointError(
            f"{checkpoint} was written by a run on other prompts: {'; '.join(unasked)}. Their file or data set has "
            f"changed. Resume with the prompts as they were, or use these with "
            f"--training.allow_changed_prompts true"
        )
    return [*changes.values(), *others.values()]


def _check_algorithm(checkpoint: Path, before: str | None, now: str | None) -> None:
    """Reject an algorithm other than the checkpoint's; a run set up in Python has no name for its algorithm (None)."""
    if before is not None and now is not None and before != now:
        raise checkpoints.CheckpointError(
            f"{ALGORITHM} is {now!r}, but {checkpoint} is of a run with {before!r}; expected {before!r} in a "
            f"resumed run. For {now!r}, start a new run from its tester (tester.adapter; or tester.path, if it "
            f"was trained in full)"
        )


def _names_others(name: str, changes: Mapping[str, str]) -> bool:
    """Whether the configuration names other prompts than before, which are then reported like any changed field."""
    return any(change == f"prompts.{name}" or change.startswith(f"prompts.{name}.") for change in changes)
