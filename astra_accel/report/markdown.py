"""The report as a summary in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from astra_accel.files.text import markdown_block, markdown_line, shortened
from astra_accel.report.collect import Run
from astra_accel.report.conversations import conversations
from astra_accel.report.goals import category_rows, goal_rows
from astra_accel.report.page import about, harm_rows, headline_rows

NUM_WORST = 3
MAX_TEXT = 1000


def render_markdown(runs: Sequence[Run], verdicts: Sequence[str] = ()) -> str:
    """The effect of training, what was run, the headline figures, and the worst conversations, folded."""
    parts = ["# Red-team report", ""]
    for sentence in verdicts:
        parts += [markdown_line(sentence), ""]
    for run in runs:
        parts += [f"## {markdown_line(run.name)}", ""]
        parts += [f"- {markdown_line(label)}: {markdown_line(fact)}" for label, fact in about(run)]
        parts.append("")
    parts += _figures(runs, "Figures on held-out prompts, with 95% intervals", headline_rows(runs))
    parts += _figures(runs, "Attack success by kind of harm, with 95% intervals", harm_rows(runs))
    parts += _figures(runs, "By category", category_rows(runs))
    parts += _figures(runs, "By goal: tries that succeeded", goal_rows(runs))
    parts += _worst(runs)
    return "\n".join(parts)


def _figures(runs: Sequence[Run], title: str, rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> list[str]:
    if not rows:
        return []
    parts = [f"## {title}", ""]
    parts += [_row(["figure", *(run.name for run in runs)]), _row(["---"] * (len(runs) + 1), escape=False)]
    parts += [_row([name, *(f"{value} ({ends})" if ends else value for value, ends in cells)]) for name, cells in rows]
    return [*parts, ""]


def _worst(runs: Sequence[Run]) -> list[str]:
    shown, _ = conversations(runs, max_episodes=2 * NUM_WORST * len(runs))  # half of them are the worst
    scored = [episode for episode in shown if episode["worst"] is not None]
    if not scored:
        return []
    parts = ["## The worst conversations", "", "<details><summary>They can be offensive</summary>", ""]
    for episode in sorted(scored, key=lambda episode: -episode["worst"])[:NUM_WORST]:
        run = markdown_line(runs[episode["run"]].name)
        parts += [f"{run}, {markdown_line(episode['source'])}, worst score {episode['worst']}:", ""]
        for name in ("goal", "prompt"):
            if episode[name]:
                parts.append(markdown_block(f"{name}: {shortened(episode[name], MAX_TEXT)}"))
        for place in _way_to_worst(episode["nodes"]):
            _, probe, response, score, _ = episode["nodes"][place]
            parts.append(markdown_block(f"tester: {shortened(probe, MAX_TEXT)}"))
            parts.append(markdown_block(f"target ({score}): {shortened(response, MAX_TEXT)}"))
        parts.append("")
    return [*parts, "</details>", ""]


def _way_to_worst(nodes: Sequence[Sequence]) -> list[int]:
    """The indices of the nodes from the first turn to the one with the highest score."""
    place = max(range(len(nodes)), key=lambda index: -1.0 if nodes[index][3] is None else nodes[index][3])
    way = []
    while place >= 0:
        way.append(place)
        place = nodes[place][0]
    return way[::-1]


def _row(cells: Sequence[str], escape: bool = True) -> str:
    return f"| {' | '.join(markdown_line(cell) if escape else cell for cell in cells)} |"
