"""The type that the models of a run load in: chosen once, the same on all processes, and kept when it is resumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from astra_accel.config import RunConfiguration
from astra_accel.distributed.collectives import gather_results
from astra_accel.models.loading.precision import AutoDtype, auto_dtype
from astra_accel.models.roles import RoleFiles

logger = logging.getLogger(__name__)

EARLIER = "float32"
"""What `auto` was on a CPU in runs of versions that did not write what it came to."""


def settle_precision(config: RunConfiguration, accelerator: Accelerator) -> RunConfiguration:
    """Replace ``auto`` in ``training.mixed_precision`` by what the accelerator computes in."""
    if config.training.mixed_precision != "auto":
        return config
    precision = accelerator.mixed_precision
    if accelerator.is_main_process:
        computes = "computes" if precision == "bf16" else "does not compute"
        logger.info("mixed_precision auto: %s, since this device %s in bfloat16", precision, computes)
    return config.model_copy(update={"training": config.training.model_copy(update={"mixed_precision": precision})})


def settle_dtype(
    config: RunConfiguration, files: RoleFiles, accelerator: Accelerator, before: Mapping[str, Any] | None = None
) -> RunConfiguration:
    """Replace ``auto`` in ``compute.dtype`` by the type that it stands for. All processes must call it.

    If the processors of a run differ, all processes take float32.

    Args:
        config: the configuration of the whole run.
        files: the models of the configuration.
        accelerator: the processes of the run.
        before: the configuration of a run that is resumed or evaluated, by dotted names; its type stays what it was.
    """
    if config.compute.dtype != "auto":
        return config
    if before is not None and "tester.dtype" in before:
        dtype = before.get("compute.dtype", "auto")
        if dtype == "auto" and accelerator.device.type == "cpu":
            dtype = EARLIER
        chosen = AutoDtype(dtype, f"{dtype}, with which this run began")
    else:
        found = gather_results(accelerator, lambda: auto_dtype(files, accelerator.device))
        alike = len({choice.dtype for choice in found}) == 1
        chosen = found[0] if alike else AutoDtype("float32", "float32, since not all processors compute in bfloat16")
    if accelerator.is_main_process:
        logger.info("dtype auto: %s", chosen.message)
    return config.model_copy(update={"compute": config.compute.model_copy(update={"dtype": chosen.dtype})})
