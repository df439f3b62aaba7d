"""Decoding that reads every context anew, and which models can do it."""

from __future__ import annotations

import pytest
import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding import token_sampling
from astra_accel.models.decoding.generation import generate
from astra_accel.models.decoding.padded_generation import moves_rows, takes_padding
from tests.helpers.architectures import build


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "falcon_alibi", "mamba"])
def test_padded_batches_are_for_all_but_recurrent_models(architecture):
    assert takes_padding(build(architecture)) == (architecture != "mamba")


@pytest.mark.parametrize("steps", [1, 4])
def test_a_model_that_keeps_the_states_of_rows_beside_the_cache_keeps_its_rows_in_their_batch(steps, monkeypatch):
    """Its rows would continue with one another's as soon as one of them ends: log-probs were 0.7 nats off."""
    config = RecurrentGemmaConfig(
        vocab_size=96, hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96, lru_width=48
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RecurrentGemmaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    assert not moves_rows(model)
    monkeypatch.setitem(token_sampling.STEPS_AT_ONCE, "cpu", steps)
    contexts, sampling = [(5, 6), (7, 8), (5, 6), (7, 8), (9,)], SamplingConfiguration(max_new_tokens=6)
    seeds = [[row] for row in range(5)]
    found = generate(model, contexts, seeds, sampling, end_ids=set(range(24)))
    assert len({len(row.ids) for row in found}) > 1
    for context, seed, row in zip(contexts, seeds, found, strict=True):
        (alone,) = generate(model, [context], [seed], sampling, end_ids=set(range(24)))
        assert row.ids == alone.ids
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *row.ids]]), use_cache=False).logits[0]
        place = torch.arange(len(row.ids)) + len(context) - 1
        expected = logits.log_softmax(-1)[place, list(row.ids)]
        torch.testing.assert_close(torch.tensor(row.logprobs), expected, rtol=1e-4, atol=1e-4)
