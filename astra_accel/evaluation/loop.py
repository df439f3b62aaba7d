"""The loop of an evaluation: all prompts, on all processes, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from astra_accel.core.prompt import as_json
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

    All processes must call it; each gets the figures. Episodes are processed in parts, each written when it is done. A
    stopped evaluation continues after its last part, and ends with the same figures; a finished one is only measured
    again, e.g. with another threshold.

    Args:
        folder: where to write; see ``folder`` for the files.
        evaluator: has ``sampler``, ``seeds``, ``describe``, ``judge`` and ``measure``, as an ``ASTEvaluator`` has.
        accelerator: connects the processes that share the work; None uses only this one.
        settings: what else determines the conversations (models, sampling), so that an evaluation is not continued with
            other settings. JSON values.
        episodes_at_once: the number of episodes in a part, over all processes.
        jsonl: whether to write the nodes as JSON lines too.
        overwrite: whether to start from the beginning, whatever the folder holds.
        lock: the folder's lock if the caller already holds it; None acquires it for the duration of the call.

    Raises:
        FolderInUseError: another evaluation writes to the folder now.
        LockLostError: another evaluation took over the folder, since this one's heartbeat had stopped.
        ValueError: there are no seeds, or a seed occurs twice; an :class:`EvaluationError` if the folder holds another
            evaluation.
    """
    if accelerator is None:
        accelerator = new_accelerator(cpu=not torch.accelerator.is_available())
    seeds = check_seeds(evaluator.seeds)
    files = EvaluationFolder(folder)
    identity = {
        "seeds": list(map(as_json, seeds)),
        "episodes_at_once": episodes_at_once,
        **evaluator.describe(),
        "settings": dict(settings or {}),
    }
    own = holding(accelerator, RunLock(files.path, FIELD)) if lock is None else nullcontext(lock)
    with own as held:
        return _evaluate(files, evaluator, accelerator, identity, seeds, jsonl=jsonl, overwrite=overwrite, lock=held)


def _evaluate(
    files: EvaluationFolder,
    evaluator: Any,
    accelerator: Accelerator,
    identity: Mapping[str, Any],
    seeds: Sequence[Any],
    *,
    jsonl: bool,
    overwrite: bool,
    lock: RunLock,
) -> dict[str, Any]:
    """The same, in a folder that no other process writes to."""
    episodes_at_once = identity["episodes_at_once"]
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
    benign = _benign_rows(files, evaluator, harness, lock)

    def finish() -> dict[str, Any]:
        lock.verify()
        rows = files.rows()
        metrics = evaluator.measure(rows, benign) if benign else evaluator.measure(rows)
        if jsonl:
            files.write_lines(rows)
        files.write_metrics(metrics)
        return metrics

    return on_main(accelerator, finish)


def _benign_rows(files: EvaluationFolder, evaluator: Any, harness: Harness, lock: RunLock) -> list[dict[str, Any]]:
    """The target's answers to harmless requests, perhaps from an earlier attempt; none if there are no requests."""
    benign, accelerator = getattr(evaluator, "benign", None), harness.accelerator
    if benign is None or accelerator is None:
        return []
    rows = on_main(accelerator, files.benign_rows)
    if [row["request"] for row in rows] != list(benign.requests):
        rows = harness.spread(benign.requests, partial(benign.ask, evaluator.sampler.system))

    def judge() -> list[dict[str, Any]]:
        judged = benign.judged(rows)
        lock.verify()
        files.write_benign(judged)
        return judged

    return on_main(accelerator, judge)


def check_seeds(seeds: Sequence[Any] | None) -> list[Any]:
    """The seeds, after checking that there are some and none occurs twice: a repeated conversation adds no evidence.

    Raises:
        ValueError: there are none, or a seed occurs twice; names it.
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
