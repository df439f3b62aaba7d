"""What all tests share."""

from __future__ import annotations

import torch

# The models of the tests are tiny: threads cost them more than they bring, above all where processes share cores.
torch.set_num_threads(1)
