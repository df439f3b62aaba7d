"""Hold back a bitsandbytes warning that only concerns 4-bit models until one is loaded.

PEFT imports bitsandbytes wherever it is installed, and on CPUs with AVX512-BF16 bitsandbytes then warns that the
package ``kernels`` is missing, which only 4-bit weights on a CPU use. Most users do not need that warning.
"""

from __future__ import annotations

import logging

LOGGER = "bitsandbytes.backends.cpu.ops"
BEGINNING = "Failed to load CPU gemm_4bit_forward"


class KernelNotice(logging.Filter):
    """Holds back that one line; all other records pass."""

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
        """Log the held-back records once, and hold back nothing from now on."""
        logger = logging.getLogger(LOGGER)
        logger.removeFilter(self)
        kept, self._kept = self._kept, []
        for record in kept:
            logger.handle(record)


NOTICE = KernelNotice()


def keep_back() -> None:
    """Install the filter, before bitsandbytes is imported. Further calls change nothing."""
    logging.getLogger(LOGGER).addFilter(NOTICE)
