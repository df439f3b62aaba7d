"""Decoding that reads every context anew, and which models can do it."""

from __future__ import annotations

import pytest
import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from astra_accel.config import SamplingConfiguration
from astra_accel.models.generation import generate
from astra_accel.models.rereading import takes_padding
from astra_accel.models.support import UnsupportedModelError
from tests.helpers.architectures import build


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "falcon_alibi", "mamba"])
def test_padded_batches_are_for_all_but_recurrent_models(architecture):
    assert takes_padding(build(architecture)) == (architecture != "mamba")


def test_a_model_that_keeps_the_states_of_rows_beside_the_cache_is_refused():
    """Its rows would go on with one another's as soon as one of them ends: log-probs were 0.7 nats off."""
    config = RecurrentGemmaConfig(
        vocab_size=96, hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96, lru_width=48
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RecurrentGemmaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    with pytest.raises(UnsupportedModelError, match="can't do decoding with a cache: log-probs differ by"):
        generate(model, [(5, 6), (7, 8)], [[0], [1]], SamplingConfiguration(max_new_tokens=4), end_ids=())
