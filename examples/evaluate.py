"""Evaluate a trained tester on the test prompts of its run, on any number of processes.

    python examples/evaluate.py runs/demo
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml examples/evaluate.py runs/demo \
        --rollout.tree_depth 5 --output runs/demo/evaluation_5_turns

Prints the first figures and writes all of them, and every conversation, to ``RUN/evaluation/``. A stopped evaluation
continues where it was when it is started again.
"""

import sys

from astra_accel.jobs.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
