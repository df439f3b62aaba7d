"""The whole of adaptive stress testing in one loop: Accelerate and the parts of the library, without its trainer.

    python examples/minimal_loop.py
    accelerate launch --config_file accelerate_configs/cpu_2.yaml examples/minimal_loop.py

Random tiny models, seconds. The trainer adds what a long run needs: checkpoints, evaluation, schedules, files.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed

from astra_accel import DPO, ASTSampler, Harness, HFASTSystem
from astra_accel.distributed.step_module import StepModule
from astra_accel.experience.loader import ExperienceLoader

BATCH_SIZE, TRAINING_STEPS, EPISODES = 8, 5, 4


def main() -> None:
    """Train a tiny tester for a few steps."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), dataloader_config=DataLoaderConfiguration(split_batches=True)
    )
    set_seed(0)
    system = HFASTSystem("tiny", "tiny", device=accelerator.device)  # tester (LoRA), target and baseline: one base
    sampler = ASTSampler(system, tree_width=2, tree_depth=2)  # rolls bundled prompts out to trees
    algorithm = DPO(system, beta=0.1)  # the best probe of each context against the worst

    harness = Harness(sampler, algorithm, EPISODES, accelerator=accelerator)
    loader = ExperienceLoader(accelerator, algorithm, BATCH_SIZE, accumulation=1, seed=0)
    optimizer = torch.optim.AdamW(system.parameters(), lr=1e-3)
    step_module, optimizer = accelerator.prepare(StepModule(system, algorithm), optimizer)

    for step in range(TRAINING_STEPS):
        experience = harness.collect(step)  # every process rolls out its part and gets all of it
        for batch, weight, _ in loader.micro_batches(experience, epoch=0):  # every process gets its shard of a batch
            with accelerator.accumulate(step_module):
                loss, _ = step_module(batch)
                # The weights of an update add up to 1, so what Accelerate divides by is undone.
                accelerator.backward(
                    loss * weight * accelerator.gradient_accumulation_steps * accelerator.num_processes
                )
                optimizer.step()
                optimizer.zero_grad()
        rewards = [node.reward for graph in experience.graphs for node in graph.children]
        accelerator.print(f"step {step + 1}: mean reward of the first turns {sum(rewards) / len(rewards):.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
