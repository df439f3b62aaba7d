"""Token ids that a model has no embedding for."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3Config, LlamaConfig, MambaConfig

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding.generation import generate
from astra_accel.models.decoding.token_sampling import draw_on_device, noise_keys, sample
from astra_accel.models.loading.embedding_rows import (
    check_token_ids,
    configured_rows,
    embedding_rows,
    head_rows,
    known_rows,
)
from astra_accel.models.logprobs import sequence_logprobs
from tests.helpers.architectures import VOCABULARY, build


@pytest.mark.parametrize("config", [LlamaConfig(vocab_size=77), MambaConfig(vocab_size=77)])
def test_the_rows_of_a_configuration(config):
    assert configured_rows(config) == 77


def test_the_rows_of_a_multimodal_configuration_are_its_text_models():
    assert configured_rows(Gemma3Config(text_config={"vocab_size": 88})) == 88


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba"])
def test_the_rows_that_are_there(architecture):
    model = build(architecture)
    assert embedding_rows(model) == VOCABULARY
    model.resize_token_embeddings(VOCABULARY + 8)
    assert embedding_rows(model) == VOCABULARY + 8


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_an_id_without_an_embedding_is_named(token):
    model = build("llama")
    check_token_ids(model, [(0, VOCABULARY - 1), ()], [(0, VOCABULARY - 1), ()])
    expected = (
        rf"^context 2 holds the token id {token} at place 1, but LlamaForCausalLM has 260 embeddings: "
        rf"expected ids from 0 to 259$"
    )
    with pytest.raises(ValueError, match=expected):
        check_token_ids(model, [(3,), (), (4, token)])


def test_what_is_read_and_never_predicted():
    """As the image's token of Llama 3.2 Vision."""
    model = build("llama")
    model.set_input_embeddings(torch.nn.Embedding(VOCABULARY + 8, 48))
    assert (embedding_rows(model), head_rows(model), known_rows(model)) == (VOCABULARY + 8, VOCABULARY, VOCABULARY)
    sequence_logprobs(model, [(5, VOCABULARY + 7)], [(6,)])
    with pytest.raises(ValueError, match="continuation 0 holds the token id 260 at place 1"):
        sequence_logprobs(model, [(5,)], [(6, VOCABULARY)])


@pytest.mark.parametrize("architecture", ["llama", "falcon_alibi"])
@pytest.mark.parametrize(
    ("contexts", "continuations", "named"),
    [([(5, 300)], [(6,)], "context 0"), ([(5,), (5,)], [(6,), (7, 300)], "continuation 1")],
)
def test_log_probs_of_such_ids_are_refused_by_name(architecture, contexts, continuations, named):
    with pytest.raises(ValueError, match=f"{named} holds the token id 300"):
        sequence_logprobs(build(architecture), contexts, continuations)


@pytest.mark.parametrize("architecture", ["llama", "falcon_alibi"])
def test_a_context_of_such_ids_is_refused_by_name(architecture):
    with pytest.raises(ValueError, match="context 1 holds the token id 300 at place 0"):
        generate(build(architecture), [(5,), (300, 5)], [[0], [0]], SamplingConfiguration(), end_ids=())


def keys(num_rows: int) -> torch.Tensor:
    return torch.cat([torch.from_numpy(noise_keys([row], 1)) for row in range(num_rows)])


class TestSampling:
    """Of the first ids alone, with the log-probs of the whole distribution."""

    @pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"temperature": 1.3, "top_k": 4}, {"top_p": 0.7}])
    def test_it_draws_as_if_there_were_no_others(self, options):
        sampling = SamplingConfiguration(**options)
        logits_BV = 2 * torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
        tokens_B, logprobs_B = draw_on_device(logits_BV, keys(64), sampling, num_ids=11)
        assert torch.equal(tokens_B, sample(logits_BV[:, :11].clone(), keys(64), sampling)[0])
        expected = logits_BV.log_softmax(-1)[torch.arange(64), tokens_B]
        torch.testing.assert_close(logprobs_B, expected)

    @pytest.mark.parametrize("num_ids", [None, 30, 31])
    def test_where_there_are_no_others_nothing_changes(self, num_ids):
        logits_BV = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
        expected = draw_on_device(logits_BV, keys(64), SamplingConfiguration())
        found = draw_on_device(logits_BV, keys(64), SamplingConfiguration(), num_ids)
        assert all(map(torch.equal, found, expected))

    @pytest.mark.parametrize("architecture", ["llama", "falcon_alibi"])
    def test_a_turn_holds_none_of_the_others(self, architecture):
        model = build(architecture)
        contexts, seeds = [(5, 6), (7,), (8, 9, 10)] * 4, [[row] for row in range(12)]
        sampling = SamplingConfiguration(max_new_tokens=12)
        free = generate(model, contexts, seeds, sampling, end_ids=())
        assert max(max(row.ids) for row in free) >= 100
        bound = generate(model, contexts, seeds, sampling, end_ids=(), num_ids=100)
        assert max(max(row.ids) for row in bound) < 100
        whole = sequence_logprobs(model, contexts, [row.ids for row in bound])
        for row, logprobs in zip(bound, whole, strict=True):
            torch.testing.assert_close(torch.tensor(row.logprobs), logprobs.detach(), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("architecture", ["llama", "falcon_alibi"])
    def test_a_head_with_more_rows_than_the_embeddings(self, architecture):
        """What a model itself can't read it never says."""
        model = build(architecture)
        embeddings = torch.nn.Embedding(40, model.config.hidden_size)
        model.set_input_embeddings(embeddings)
        seeds = [[row] for row in range(4)]
        rows = generate(model, [(5, 6)] * 4, seeds, SamplingConfiguration(max_new_tokens=12), end_ids=())
        assert max(max(row.ids) for row in rows) < 40
