"""Evaluate a trained tester on the test prompts of its run, on any number of processes.

    python examples/evaluate.py runs/demo
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml examples/evaluate.py runs/demo \
        --rollout.tree_depth 5

Prints the metrics and writes them, and every conversation, to ``RUN/evaluation/``.
"""

import argparse
import json
from pathlib import Path

from astra_accel import ASTEvaluator, Harness, RunConfiguration
from astra_accel.training.distributed import make_accelerator, on_main
from astra_accel.training.outputs import RunFolder
from astra_accel.training.run import Prompts, build_sampler


def main() -> None:
    """Evaluate the tester of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the output folder of a run")
    arguments, overrides = parser.parse_known_args()
    config = RunConfiguration.load(arguments.run / "config.yaml", overrides)
    tester = arguments.run / "tester"
    if (tester / "adapter_config.json").exists():
        config.tester.adapter = str(tester)
    else:
        config.baseline = config.baseline or config.tester.model_copy()
        config.tester.path = str(tester)

    accelerator = make_accelerator(config.training)
    prompts = Prompts(config)
    sampler = build_sampler(config, accelerator.device, prompts)
    evaluator = ASTEvaluator(sampler)
    graphs = Harness(sampler, algorithm=None, accelerator=accelerator).evaluate(prompts.test)
    metrics = evaluator.aggregate_metrics([evaluator.compute_metrics(graph) for graph in graphs])
    accelerator.print(json.dumps(metrics, indent=2))

    def write() -> None:
        folder = RunFolder(arguments.run / "evaluation")
        folder.write_rollouts(0, graphs)
        evaluator.write_json(metrics, folder.path / "metrics.json")

    on_main(accelerator, write)


if __name__ == "__main__":
    main()
