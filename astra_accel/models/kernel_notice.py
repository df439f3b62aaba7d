"""A line of bitsandbytes that concerns models of 4 bits alone, kept back until there is one.

PEFT imports bitsandbytes wherever it is installed, and on CPUs with AVX512-BF16 bitsandbytes then warns that it lacks
the package ``kernels``, which is for weights of 4 bits on a CPU. Everyone would read it, most of them to no purpose.
"""

from __future__ import annotations

import logging

LOGGER = "bitsandbytes.backends.cpu.ops"
BEGINNING = "Failed to load CPU gemm_4bit_forward"


class KernelNotice(logging.Filter):
    """Keeps that one line back; whatever else is logged passes."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged now."""
        if not record.getMessage().startswith(BEGINNING):
            return True
        self._kept.append(record)
        return False

    def tell(self) -> None:
        """Log what was kept, once, and keep nothing from now on."""
        logger = logging.getLogger(LOGGER)
        logger.removeFilter(self)
        kept, self._kept = self._kept, []
        for record in kept:
            logger.handle(record)


NOTICE = KernelNotice()


def keep_back() -> None:
    """Before bitsandbytes is imported. Called again, it changes nothing."""
    logging.getLogger(LOGGER).addFilter(NOTICE)
