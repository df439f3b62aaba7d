"""The type that the models of a run load in: chosen once, the same on all processes, and kept when it is resumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from astra_accel.config import RunConfiguration
from astra_accel.distributed.collectives import gather_results
from astra_accel.models.loading.precision import auto_dtype
from astra_accel.models.roles import RoleFiles

logger = logging.getLogger(__name__)

EARLIER = "float32"
"""What `auto` was on a CPU in runs of versions that did not write what it came to."""


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
    else:
        found = set(gather_results(accelerator, lambda: auto_dtype(files, accelerator.device)))
        dtype = found.pop() if len(found) == 1 else "float32"
        if found:
            logger.warning("dtype auto: not all processors compute in bfloat16, so models load in float32")
    if dtype == "bfloat16" and accelerator.is_main_process:
        logger.info("dtype auto: bfloat16, in which this processor computes (for float32: --compute.dtype float32)")
    return config.model_copy(update={"compute": config.compute.model_copy(update={"dtype": dtype})})
