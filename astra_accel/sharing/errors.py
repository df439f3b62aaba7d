"""What can't be shared."""

from __future__ import annotations

from astra_accel.config import ConfigurationError


class SharingError(ConfigurationError):
    """Something can't be exported or uploaded; the message says why, and what to do."""
