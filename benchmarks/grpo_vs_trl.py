"""How long a step of GRPO takes with TRL's GRPOTrainer and with our generation and log-probs.

    python benchmarks/grpo_vs_trl.py [--dtypes float32 bfloat16] [--width 8] [--batch 16] [--tokens 32] [--steps 3]
        [--repeats 3]

Both sides take the same steps: ``batch`` completions, ``width`` of each prompt (group), the same prompts in the same
order, adapter, learning rate, clipping and scorer; no KL term, no reference model, temperature 1. TRL runs as it is
made (transformers' ``generate``), but without activation checkpointing, which is on by default there and would slow
it down. TRL has no target, so there is no response and no tree: a completion is judged alone.

Each side is measured with its weights in every dtype, TRL in bfloat16 also as it does by default: weights in float32,
products in bfloat16 (autocast). The first ratio sets the quickest of TRL beside the quickest of ours.

The library has no GRPO, so the loss is written here (Shao et al. 2024, https://arxiv.org/abs/2402.03300, equation 3,
without KL, on the very policy that sampled, normalised over all tokens of the batch): with ``A`` a completion's score
less the mean of its group, divided by the group's standard deviation,

    loss = -mean over tokens of A * exp(logp - stop_gradient(logp))

The sides take turns in blocks of ``steps`` steps after one that warms up; a block counts with the median of its steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from common import build_system, device, first_prompts, interleaved, medians, parse, report, seconds

from astra_accel.config import LoRAConfiguration

LR = 1e-5
MAX_GRAD_NORM = 1.0
TRL, OURS = "TRL step", "our step"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the ratio."""
    options = parse(__doc__, arguments, dtypes=True, width=8, batch=16, steps=3)
    if options.batch % options.width:
        raise ValueError(f"--batch is {options.batch}, expected a multiple of --width, {options.width}")
    prompts = first_prompts(options)
    with tempfile.TemporaryDirectory() as folder:
        blocks: dict[str, Callable[[], float]] = {}
        for dtype in options.dtypes:
            own = argparse.Namespace(**vars(options), dtype=dtype)
            system = build_system(own)
            blocks[f"{TRL}, {dtype}"] = trl_block(system, prompts, own, folder)
            blocks[f"{OURS}, {dtype}"] = our_block(system, prompts, own)
            if dtype == "bfloat16":
                own = argparse.Namespace(**vars(options), dtype="float32")
                blocks[f"{TRL}, bfloat16 by autocast"] = trl_block(system, prompts, own, folder, autocast=True)
        measured = interleaved(blocks, options.repeats)
    took = medians(measured)
    fastest = {side: min(value for name, value in took.items() if name.startswith(side)) for side in (TRL, OURS)}
    ratios = {"TRL / ours": fastest[TRL] / fastest[OURS]}
    ratios |= {f"TRL / ours, {dtype}": took[f"{TRL}, {dtype}"] / took[f"{OURS}, {dtype}"] for dtype in options.dtypes}
    return report("grpo_vs_trl", options, measured, ratios, packages=["trl"])


def our_block(system: Any, prompts: Sequence[str], options: argparse.Namespace) -> Callable[[], float]:
    """A block of our steps, which gives the median time of one."""
    ours = GRPO(system, prompts, options.width, options.batch)

    def block() -> float:
        taken = [seconds(ours.step)() for _ in range(1 + options.steps)]
        return statistics.median(taken[1:])

    return block


class GRPO:
    """GRPO on one-turn trees, from the library's parts.

    Args:
        system: its tester is trained, its scorer judges completions.
        prompts: taken in turn, round and round.
        width: completions a prompt.
        batch: completions a step.
    """

    def __init__(self, system: Any, prompts: Sequence[str], width: int, batch: int) -> None:
        sampling = system.rollout_config.tester
        self._system = system
        self._contexts = [system.views.tester.own_turn(system.start(text), sampling.max_new_tokens) for text in prompts]
        self._width = width
        self._batch = batch
        self._num_steps = 0
        self._optimizer = torch.optim.AdamW(system.parameters(), lr=LR)

    def step(self) -> None:
        """Sample, score, and update once."""
        num_prompts = self._batch // self._width
        first = self._num_steps * num_prompts
        contexts = [self._contexts[(first + row // self._width) % len(self._contexts)] for row in range(self._batch)]
        completions = self._sample(contexts)
        texts = [self._system.views.probe(ids, self._system.roles.tester.files.end_ids).text for ids in completions]
        advantages = group_advantages(self._system.scorer.score(texts), self._width)
        grpo_loss(self._system.roles.tester.logprobs(contexts, completions), advantages).backward()
        torch.nn.utils.clip_grad_norm_(list(self._system.parameters()), MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._num_steps += 1

    def _sample(self, contexts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        config = self._system.rollout_config
        seeds = [(self._num_steps, row) for row in range(self._batch)]
        with self._system.rolling_out():
            rows = self._system.roles.tester.generate(contexts, seeds, config.tester, config.rows_on(device().type))
        return [row.ids for row in rows]


def group_advantages(scores: Sequence[float], width: int) -> torch.Tensor:
    """Scores less the mean of their group of ``width`` neighbours, by its standard deviation, ``[batch]``."""
    scores_GW = torch.tensor(scores).reshape(-1, width)
    return ((scores_GW - scores_GW.mean(-1, keepdim=True)) / (scores_GW.std(-1, keepdim=True) + 1e-4)).flatten()


def grpo_loss(logprobs: Sequence[torch.Tensor], advantages: torch.Tensor) -> torch.Tensor:
    """The loss of completions by the log-probs of their tokens and an advantage each."""
    terms = [
        advantage * (values - values.detach()).exp() for values, advantage in zip(logprobs, advantages, strict=True)
    ]
    return -torch.cat(terms).mean()


def trl_block(
    system: Any, prompts: Sequence[str], options: argparse.Namespace, output_dir: str, *, autocast: bool = False
) -> Callable[[], float]:
    """A block of TRL's steps, which gives the median time of one."""
    try:
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise ImportError("this benchmark needs TRL: pip install 'astra-accel[bench]'") from error
    from datasets import Dataset

    def score(completions: list[str], **_: Any) -> list[float]:
        return list(system.scorer.score(completions))

    clock = _step_clock()
    config = GRPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=options.batch,
        steps_per_generation=1,
        num_generations=options.width,
        max_completion_length=options.tokens,
        max_steps=1 + options.steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        beta=0.0,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=autocast,
        use_cpu=device().type == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    files = system.roles.tester.files
    trainer = GRPOTrainer(
        model=files.load(getattr(torch, options.dtype)).requires_grad_(options.full),
        reward_funcs=score,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        processing_class=files.tokenizer,
        peft_config=None if options.full else _trl_adapter(),
        callbacks=[clock],
    )

    def block() -> float:
        clock.taken.clear()
        # What a trainer says is not the result.
        with redirect_stdout(sys.stderr):
            trainer.train()
        return statistics.median(clock.taken[1:])

    return block


def _trl_adapter() -> Any:
    from peft import LoraConfig

    lora = LoRAConfiguration()
    return LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def _step_clock() -> Any:
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        """The seconds of every step of a trainer, sampling and update."""

        def __init__(self) -> None:
            self.taken: list[float] = []
            self._begun = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self.taken.append(time.perf_counter() - self._begun)

    return StepClock()


if __name__ == "__main__":
    main()
