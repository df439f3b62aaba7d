r"""Train a tester as a YAML file says, on any number of processes.

python examples/train.py --config examples/configs/tiny_dpo.yaml accelerate launch --config_file
accelerate_configs/multi_gpu.yaml examples/train.py \ --config examples/configs/llama3_8b_lora_dpo.yaml --training.lr
1e-4

Any field of the configuration can be set on the command line by its section and name; ``--resume`` takes a checkpoint
folder to continue from, or ``auto``: the newest checkpoint in the output folder, and the beginning where there is none.
A run that SIGTERM or SIGUSR1 stopped exits with code 75.
"""

import sys

from astra_accel.jobs.train import main

if __name__ == "__main__":
    sys.exit(main())
