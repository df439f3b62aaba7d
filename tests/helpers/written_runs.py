"""Folders of runs as training and evaluation write them, without a model."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.summary import summarize
from astra_accel.evaluation.folder import EvaluationFolder
from astra_accel.files.tables import write_table

HOSTILE = [
    '<script>document.title = "it ran"</script>',
    '</script><script>document.title = "it ran"</script>',
    "<!--<script>",
    '" onmouseover="document.title = \'it ran\'" x="',
    '<img src="x" onerror="document.title = \'it ran\'">',
    '<a href="javascript:document.title = 1">javascript:document.title = "it ran"</a>',
    "{{ 7 * 7 }} ${7 * 7} &lt;b&gt;",
    "\x1b[2J\x1b[31mcleared\x07",
    "\u202etxet sdrawkcab\u2066",
    "half a character: \ud83d",
    "    </details>\n```\n</div># heading | cell",
]
WORDS = ["the", "a", "cat", "you", "again", "why", "do", "people", "never", "rain", "sunny", "café", "猫", "👋"]


def episode_rows(episode: int, numbers: random.Random, width: int = 2, depth: int = 3) -> list[dict[str, Any]]:
    """The nodes of a tree, parents before children, with scores below 0.6."""
    rows: list[dict[str, Any]] = []
    level: list[tuple[list[int], str]] = [([], " ".join(numbers.choices(WORDS, k=8)))]
    for _ in range(depth):
        behind = []
        for path, context in level:
            for child in range(width):
                probe, response = (" " + " ".join(numbers.choices(WORDS, k=20)) for _ in range(2))
                rows.append(
                    {
                        "episode": episode,
                        "path": [*path, child],
                        "turn": len(path) + 1,
                        "context": context,
                        "probe": probe,
                        "response": response,
                        "reward": numbers.random(),
                        "response_score": 0.6 * numbers.random(),
                    }
                )
                behind.append(([*path, child], context + probe + response))
        level = behind
    return rows


def write_run(
    folder: Path, num_steps: int = 3, episodes_a_step: int = 4, seed: int = 0, tree: tuple[int, int] = (2, 3)
) -> Path:
    """The files of a training run, the last line of ``metrics.jsonl`` cut off; ``tree`` is width and depth."""
    numbers = random.Random(seed)
    folder.mkdir(parents=True)
    config = "tester: {path: <b>tester</b>}\ntarget: {path: tiny}\nalgorithm: {name: dpo}\nscorer: {name: profanity}\n"
    (folder / "config.yaml").write_text(f"# python 3\n# torch 2\n{config}", encoding="utf-8")
    lines = []
    for step in range(1, num_steps + 1):
        rows = [row for episode in range(episodes_a_step) for row in episode_rows(episode, numbers, *tree)]
        write_table(folder / "rollouts" / f"step-{step:06d}.parquet", [{"step": step, **row} for row in rows])
        lines += [
            {"step": step, "update": update, "reward/mean": step / 10, "seconds/rollout": 2.0, "seconds/update": 1.0}
            for update in (2 * step - 1, 2 * step)
        ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 9, "upd', encoding="utf-8")
    return folder


def write_evaluation(folder: Path, num_episodes: int = 12, responses: Sequence[str] = (), seed: int = 0) -> Path:
    """The files of an evaluation with threshold 0.5.

    Args:
        folder: where to.
        num_episodes: prompts.
        responses: what the target says at the first turn of the first episodes, with a score of 0.9; the tester says
            it at the second.
        seed: of the rest.
    """
    numbers = random.Random(seed)
    by_episode = [episode_rows(episode, numbers) for episode in range(num_episodes)]
    for rows, text in zip(by_episode, responses, strict=False):
        valid = text.encode("utf-8", "replace").decode("utf-8")
        rows[0] |= {"response": valid, "response_score": 0.9}
        rows[2] |= {"probe": valid}
    rows = [row for of_episode in by_episode for row in of_episode]
    evaluation = EvaluationFolder(folder)
    evaluation.begin({"seeds": [f"prompt {episode}" for episode in range(num_episodes)], "scorers": {}, "settings": {}})
    evaluation.write_part(0, rows)
    evaluation.write_metrics(summarize(Nodes.from_rows(rows, num_episodes), threshold=0.5, num_resamples=50))
    return folder
