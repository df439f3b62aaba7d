from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from astra_accel import HFASTSystem
from astra_accel.distributed.engine import check_saving, check_storage


@pytest.mark.parametrize(
    "save_pretrained", [lambda folder, state_dict=None: None, lambda folder, **options: None, None]
)
def test_a_system_that_can_write_whole_weights_or_writes_none_is_fine(save_pretrained):
    check_saving(SimpleNamespace(**({} if save_pretrained is None else {"save_pretrained": save_pretrained})))


def test_our_own_system_can():
    check_saving(HFASTSystem.__new__(HFASTSystem))


def test_a_system_that_writes_what_it_holds_is_refused():
    with pytest.raises(ValueError, match=r"shards the weights.*SimpleNamespace\.save_pretrained takes no state_dict"):
        check_saving(SimpleNamespace(save_pretrained=lambda folder: None))


class Params4bit(torch.nn.Parameter):
    """By this name the weights of bitsandbytes are known."""


@pytest.mark.parametrize(
    ("kind", "precision", "dtype", "refused"),
    [
        ("FSDP", "bf16", torch.float32, "torch.bfloat16"),
        ("FSDP", "bf16", torch.bfloat16, None),
        ("FSDP", "no", torch.bfloat16, None),
        ("DEEPSPEED", "no", torch.bfloat16, "torch.float32"),
        ("DEEPSPEED", "bf16", torch.float32, "torch.bfloat16"),
        ("DEEPSPEED", "fp16", torch.float16, None),
        ("MULTI_GPU", "bf16", torch.float32, None),
    ],
)
def test_weights_of_4_bits_that_the_launch_would_cast_are_refused(kind, precision, dtype, refused):
    accelerator = SimpleNamespace(distributed_type=DistributedType[kind], mixed_precision=precision)
    module = torch.nn.Linear(1, 2, bias=False)
    module.weight = Params4bit(torch.zeros(2, 1, dtype=dtype), requires_grad=False)
    if refused is None:
        check_storage(accelerator, module)
    else:
        with pytest.raises(ValueError, match=rf"casts weights to {refused}, but weight is of 4 bits, .* {dtype}"):
            check_storage(accelerator, module)
