"""The loop of an evaluation: all prompts, on all processes, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from astra_accel.distributed.accelerator import new_accelerator
from astra_accel.distributed.collectives import holding, on_main
from astra_accel.evaluation.folder import FIELD, EvaluationFolder
from astra_accel.experience.collect import Harness
from astra_accel.files.run_lock import RunLock


def evaluate_to(
    folder: str | Path,
    evaluator: Any,
    *,
    accelerator: Accelerator | None = None,
    settings: Mapping[str, Any] | None = None,
    episodes_at_once: int = 64,
    jsonl: bool = False,
    overwrite: bool = False,
    lock: RunLock | None = None,
) -> dict[str, Any]:
    """Roll out on all of an evaluator's seeds, judge every node, and write nodes and figures to a folder.

    All processes together; each gets the figures. Episodes go in parts, each of which is written when it is done. An
    evaluation that was stopped continues after its last part, with the same figures in the end; one that has ended is
    only measured again, with another threshold, say.

    Args:
        folder: where to write; see ``folder`` for the files.
        evaluator: has ``sampler``, ``seeds``, ``describe``, ``judge`` and ``measure``, as an ``ASTEvaluator`` has.
        accelerator: the processes to share the work with; None is this one alone.
        settings: what else decides how the conversations come out (models, sampling), so that an evaluation is not
            taken up with others. Values of JSON.
        episodes_at_once: of a part, over all processes.
        jsonl: write the nodes as lines of JSON too.
        overwrite: begin anew, whatever the folder holds.
        lock: of the folder, which the caller holds already; None takes it for as long as this lasts.

    Raises:
        FolderInUseError: another evaluation writes to the folder now.
        LockLostError: another one took it over, since this one showed no life.
        ValueError: there are no seeds, or one of them twice; an :class:`EvaluationError` where the folder holds another
            evaluation.
    """
    if accelerator is None:
        accelerator = new_accelerator(cpu=not torch.accelerator.is_available())
    seeds = check_seeds(evaluator.seeds)
    files = EvaluationFolder(folder)
    identity = {
        "seeds": seeds,
        "episodes_at_once": episodes_at_once,
        **evaluator.describe(),
        "settings": dict(settings or {}),
    }
    own = holding(accelerator, RunLock(files.path, FIELD)) if lock is None else nullcontext(lock)
    with own as held:
        return _evaluate(files, evaluator, accelerator, identity, jsonl=jsonl, overwrite=overwrite, lock=held)


def _evaluate(
    files: EvaluationFolder,
    evaluator: Any,
    accelerator: Accelerator,
    identity: Mapping[str, Any],
    *,
    jsonl: bool,
    overwrite: bool,
    lock: RunLock,
) -> dict[str, Any]:
    """The same in a folder that nobody else writes to."""
    seeds, episodes_at_once = identity["seeds"], identity["episodes_at_once"]
    on_main(accelerator, lambda: files.begin(identity, overwrite))
    harness = Harness(evaluator.sampler, None, accelerator=accelerator)
    parts = [seeds[start : start + episodes_at_once] for start in range(0, len(seeds), episodes_at_once)]
    done = on_main(accelerator, lambda: files.whole_parts(len(parts)))
    for number, part in enumerate(parts):
        if number in done:
            continue
        graphs = harness.evaluate(part)
        judged = harness.spread(graphs, evaluator.judge)
        rows = [
            {**row, "episode": number * episodes_at_once + episode}
            for episode, of_graph in enumerate(judged)
            for row in of_graph
        ]
        on_main(accelerator, lock.verify)
        on_main(accelerator, partial(files.write_part, number, rows))

    def finish() -> dict[str, Any]:
        lock.verify()
        rows = files.rows()
        metrics = evaluator.measure(rows)
        if jsonl:
            files.write_lines(rows)
        files.write_metrics(metrics)
        return metrics

    return on_main(accelerator, finish)


def check_seeds(seeds: Sequence[Any] | None) -> list[Any]:
    """The seeds, once it is sure that there are some and none twice: the same conversation twice is no more evidence.

    Raises:
        ValueError: otherwise; says which.
    """
    if not seeds:
        raise ValueError("the evaluator has no seeds (held-out prompts); expected at least one")
    first: dict[Any, int] = {}
    for place, seed in enumerate(seeds, start=1):
        if seed in first:
            raise ValueError(
                f"held-out prompts {first[seed]} and {place} are the same, {str(seed)[:80]!r}; expected each once"
            )
        first[seed] = place
    return list(seeds)
