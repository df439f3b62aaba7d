"""A tester that TRL's GRPOTrainer trains for given seconds, on what a run of ours learned from (`learn_vs_trl.py`).

    python benchmarks/trl_run.py RUN --output FOLDER --seconds 600 [--lr 1e-4] [--batch 16] [--generations 8]

Model, precision, LoRA, prompts, sampling, seed and reward are those of the run's ``config.yaml``. TRL has no target, so
its reward function asks the target itself, with our generation, and pays for probe and response what the run's reward
pays; terms of weight 0, which a run of ours computes to tell of them, are left out. TRL runs as it is made, without
activation checkpointing (it would be slower), with a constant learning rate and without a KL term, as its defaults are.
The adapter goes to ``FOLDER/tester``, and ``FOLDER/trl.json`` has the seconds, the steps and the probes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from common import device

from astra_accel.config import RunConfiguration
from astra_accel.jobs.prompts import Prompts
from astra_accel.jobs.train import build_sampler
from astra_accel.methods.ast.rewards.term import Turns
from astra_accel.methods.ast.rewards.weighted import WeightedTerms
from astra_accel.models.loading.adapter_targets import new_adapter_config

MAX_STEPS = 1_000_000
"""More than any number of seconds allows for: the clock ends the training."""


class AskedReward:
    """TRL's reward function: asks the target, and pays what the system's reward does.

    Args:
        system: its target, scorer and reward.
        seed: of the target's responses.
        states: the conversation that each prompt is, by the text that TRL is given.

    Attributes:
        num_probes: how often the target was asked.
        means: of the rewards, by call.
    """

    __name__ = "reward"  # TRL names its logs by it

    def __init__(self, system: Any, seed: int, states: Mapping[str, Any]) -> None:
        self._system = system
        self._seed = seed
        self._states = states
        weights = system.reward_terms.weights
        self._terms = WeightedTerms(
            [(weights[name], term) for name, term in system.reward_terms.terms.items() if weights[name]]
        )
        self.num_probes = 0
        self.means: list[float] = []

    def __call__(self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
        """The rewards of completions; None, which TRL leaves out, where one could not be had."""
        system, end_ids = self._system, self._system.roles.tester.files.end_ids
        states = [self._states[prompt] for prompt in prompts]
        probes = [
            system.views.probe(tuple(map(int, ids)), end_ids, None, state)
            for ids, state in zip(completion_ids, states, strict=True)
        ]
        asked = [state + probe for state, probe in zip(states, probes, strict=True)]
        seeds = [(self._seed, self.num_probes + row) for row in range(len(asked))]
        with torch.no_grad():
            responses = system.rollout_prompt_with_target(asked, seeds=seeds)
            rewards = [parts["reward"] for parts in self._terms.parts(Turns(system, states, probes, responses))]
        self._terms.observe([str(probe) for probe in probes], len(self.means))
        self.num_probes += len(probes)
        known = [reward for reward in rewards if reward is not None]
        self.means.append(sum(known) / max(1, len(known)))
        return rewards


def trl_prompts(system: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """The conversation of each prompt by a text of which TRL makes exactly the tokens that our tester reads.

    Raises:
        ValueError: a tokenizer has no such text.
    """
    room, tokenizer = system.rollout_config.tester.max_new_tokens, system.roles.tester.files.tokenizer
    found = {}
    for prompt in prompts:
        state = system.start(prompt)
        ids = list(system.views.tester.own_turn(state, room))
        texts = (prompt, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True))
        text = next((text for text in texts if list(tokenizer(text)["input_ids"]) == ids), None)
        if text is None:
            raise ValueError(
                f"TRL tokenizes texts, and makes none into what our tester reads for the prompt {prompt!r}; expected a "
                f"run with rollout.format raw, or a tokenizer that adds no token of its own"
            )
        found[text] = state
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, save, and tell."""
    options = _parse(arguments)
    config = RunConfiguration.load(options.run / "config.yaml", [])
    if config.lora is None:
        raise ValueError(f"{options.run} trains all weights; expected a run with lora")
    prompts = Prompts(config)
    system = build_sampler(config, device(), prompts).system
    states = trl_prompts(system, prompts.train)
    reward = AskedReward(system, config.training.seed, states)
    clock, trainer = _trainer(config, options, system, reward, list(states))
    with redirect_stdout(sys.stderr):  # what a trainer says is not the result
        trainer.train()
    folder = options.output / "tester"
    trainer.model.save_pretrained(folder)
    system.roles.tester.files.tokenizer.save_pretrained(folder)
    result = {"seconds": clock.taken, "steps": clock.steps, "probes": reward.num_probes, "reward": reward.means}
    (options.output / "trl.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    return result


def _trainer(
    config: RunConfiguration, options: argparse.Namespace, system: Any, reward: AskedReward, prompts: Sequence[str]
) -> tuple[Any, Any]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    files, sampling = system.roles.tester.files, config.rollout.tester
    dtype = system.roles.tester.model.dtype
    model = files.load(dtype, device())
    model.generation_config.eos_token_id = sorted(files.end_ids)  # a turn ends as ours does
    of_trl = GRPOConfig(
        output_dir=str(options.output / "trainer"),
        per_device_train_batch_size=options.batch,
        steps_per_generation=1,
        num_generations=options.generations,
        max_completion_length=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_steps=MAX_STEPS,
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        max_grad_norm=config.training.max_grad_norm or 1.0,
        seed=config.training.seed,
        beta=0.0,
        gradient_checkpointing=False,
        bf16=torch.bfloat16 == dtype or config.training.mixed_precision == "bf16",
        use_cpu=device().type == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    clock = _clock(options.seconds)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=of_trl,
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        processing_class=files.tokenizer,
        peft_config=new_adapter_config(config.lora, model, files.source),
        callbacks=[clock],
    )
    return clock, trainer


def _clock(seconds: float) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Ends a training with the step in which its seconds are over."""

        def __init__(self) -> None:
            self.taken, self.steps = 0.0, 0
            self._begun = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._begun = time.perf_counter()

        def on_step_end(self, _args: Any, _state: Any, control: Any, **__: Any) -> None:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self.taken = time.perf_counter() - self._begun
            self.steps += 1
            control.should_training_stop = control.should_training_stop or self.taken >= seconds

    return Clock()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of ours that has ended")
    parser.add_argument("--output", type=Path, required=True, help="where the tester is left")
    parser.add_argument("--seconds", type=float, required=True, help="of training; the step they end in is finished")
    parser.add_argument("--lr", type=float, default=1e-4, help="default 1e-4")
    parser.add_argument("--batch", type=int, default=16, help="completions a step (default 16)")
    parser.add_argument("--generations", type=int, default=8, help="completions a prompt (default 8, TRL's own)")
    options = parser.parse_args(arguments)
    if options.batch % options.generations:
        parser.error(f"--batch is {options.batch}, expected a multiple of --generations, {options.generations}")
    return options


if __name__ == "__main__":
    main()
