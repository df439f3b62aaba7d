"""What all tests share."""

from __future__ import annotations

import torch
from hypothesis import settings

# The models of the tests are tiny: threads cost them more than they bring, above all where processes share cores.
torch.set_num_threads(1)

# A slow moment of the machine is no failure, and a failure is one everywhere.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")
