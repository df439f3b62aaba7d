"""What the tests of training share."""

import pytest

from tests.helpers.plain import reset_accelerate


@pytest.fixture(autouse=True)
def _own_accelerate_state():
    """Accelerate keeps its state for the whole process: each test begins, and leaves, without any."""
    reset_accelerate()
    yield
    reset_accelerate()
