"""What the user sees of a run, on the main process only."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from astra_accel.config import TrainingConfiguration
from astra_accel.core.sampler import Graph, Node
from astra_accel.lasting_output import LastingStream
from astra_accel.training.callbacks.base import TrainerCallback

if TYPE_CHECKING:
    from astra_accel.experience.loader import Experience
    from astra_accel.training.trainer import AccelTrainer


MAX_CHARACTERS = 10_000
"""The most characters of a text that are shown; ``rollouts/`` has the full text."""


def samples_are_due(config: TrainingConfiguration, step: int) -> bool:
    """Whether a training step shows sample conversations."""
    every = config.sample_steps
    return every is not None and (step == 1 or step % every == 0)


def best_branch(graph: Graph) -> Iterator[Node]:
    """The likeliest failure of an episode: at each turn, the probe with the best reward."""
    children: Sequence[Node] = graph.children
    while children:
        node = max(children, key=lambda node: -math.inf if node.reward is None else node.reward)
        yield node
        children = node.children


def sample_rows(graphs: Sequence[Graph], count: int) -> list[dict[str, Any]]:
    """A row for each turn of the best branches of the first ``count`` episodes, with texts that can be shown."""
    return [
        {
            "episode": episode,
            "turn": turn,
            "prompt": shown(graph.context),
            "probe": shown(node.probe),
            "response": shown(node.response),
            "reward": node.reward,
        }
        for episode, graph in enumerate(list(graphs)[:count])
        for turn, node in enumerate(best_branch(graph), start=1)
    ]


def shown(state: Any) -> str:
    """A prompt, probe or response for display; a very long one as its beginning and its length."""
    text = str(state)
    if len(text) > MAX_CHARACTERS:
        return f"{printable(text[:MAX_CHARACTERS])}… ({len(text)} characters)"
    return printable(text)


def printable(text: str) -> str:
    """Model text that can't control a terminal: control, format and surrogate characters become escapes.

    Escapes are plain ASCII, which every terminal can show; pages have the symbols of :func:`.files.text.visible`.
    """
    return "".join(
        character
        if character == "\n" or not unicodedata.category(character).startswith("C")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


SHOWN = ("loss", "reward/mean", "eval/reward/mean", "examples", "lr")


class Display(TrainerCallback):
    """Shows a progress bar on terminals, a line per training step everywhere, and sample conversations.

    Args:
        enabled: False on all processes except the main one; they show nothing.
        num_steps: the number of training steps of the run.
    """

    def __init__(self, enabled: bool, num_steps: int) -> None:
        self.console = Console(file=cast("IO[str]", LastingStream("stdout")), quiet=not enabled, highlight=False)
        self._num_steps = num_steps
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )

    @contextmanager
    def running(self, done: int) -> Iterator[None]:
        """Show the bar while training, starting from a number of steps already done."""
        self._task = self._progress.add_task("training", total=self._num_steps, completed=done)
        with self._progress:
            yield

    def step(self, step: int, record: Mapping[str, Any]) -> None:
        """Print one line for a training step."""
        figures = [f"{name} {record[name]:.4g}" for name in SHOWN if record.get(name) is not None]
        seconds = sum(value for name, value in record.items() if name.startswith("seconds/"))
        self.say(f"step {step}/{self._num_steps}  {'  '.join(figures)}  {seconds:.1f} s")
        self._progress.update(self._task, completed=step)

    def say(self, message: str) -> None:
        """Print one line, without markup."""
        self.console.print(Text(message), soft_wrap=True)

    def conversations(self, graphs: Sequence[Graph], count: int) -> None:
        """Show the likeliest failures of an experience: the branch with the best rewards in each of ``count`` trees."""
        for graph in list(graphs)[:count]:
            text = Text(shown(graph.context))
            for node in best_branch(graph):
                reward = "missing" if node.reward is None else f"{node.reward:.3f}"
                text.append(f"\n[tester, reward {reward}] ", style="bold magenta")
                text.append(shown(node.probe))
                text.append("\n[target] ", style="bold cyan")
                text.append(shown(node.response))
            self.console.print(Panel(text, title="sample conversation", title_align="left"))

    def on_step_end(self, trainer: AccelTrainer, experience: Experience, records: Sequence[Mapping[str, Any]]) -> None:
        """Show a training step, and sample conversations if they are due."""
        step, config = trainer.state.step, trainer.config
        self.step(step, records[-1])
        if samples_are_due(config, step):
            self.conversations(experience.graphs, config.num_sample_conversations)
