from types import SimpleNamespace

import pytest

from astra_accel import HFASTSystem
from astra_accel.training.engine import check_saving


@pytest.mark.parametrize(
    "save_pretrained", [lambda folder, state_dict=None: None, lambda folder, **options: None, None]
)
def test_a_system_that_can_write_whole_weights_or_writes_none_is_fine(save_pretrained):
    check_saving(SimpleNamespace(**({} if save_pretrained is None else {"save_pretrained": save_pretrained})))


def test_our_own_system_can():
    check_saving(HFASTSystem.__new__(HFASTSystem))


def test_a_system_that_writes_what_it_holds_is_refused():
    with pytest.raises(ValueError, match=r"spreads the weights.*SimpleNamespace\.save_pretrained takes no state_dict"):
        check_saving(SimpleNamespace(save_pretrained=lambda folder: None))
