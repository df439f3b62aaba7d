"""The prompts that conversations start from.

:func:`load_prompts` reads them from the bundled list of neutral conversation openings, from a file, or from
anything else that `datasets.load_dataset` takes; :func:`read_prompts` also reads goals, what conversations are to bring
out, such as the behaviors of HarmBench; :func:`check_disjoint` makes sure that held-out prompts are not trained on.
"""

from astra_accel.data.prompts import check_disjoint, load_prompts, read_prompts

__all__ = ["check_disjoint", "load_prompts", "read_prompts"]
