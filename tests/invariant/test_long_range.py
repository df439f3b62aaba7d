"""What a model says of a conversation depends on that conversation alone, however long the others beside it are.

The oracle is one plain forward a token, over the tokens before it, by a copy of the model that has read nothing else.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

from astra_accel.config import RolloutConfiguration, SamplingConfiguration
from astra_accel.methods.ast import HFASTValueFunctionSystem
from astra_accel.models.decoding.generation import Generated, carries, generate
from astra_accel.models.decoding.kv_cache import PrefixCache
from astra_accel.models.decoding.padded_generation import takes_padding
from astra_accel.models.decoding.prefill import ScoreRequest
from astra_accel.models.forward.capabilities import UnsupportedModelError
from astra_accel.models.forward.head import head_of
from astra_accel.models.loading.tiny import build_tiny
from astra_accel.models.logprobs import can_pack, sequence_logprobs, sequence_readings
from tests.helpers.architectures import VOCABULARY
from tests.helpers.long_range import ALL, DYNAMIC, LIMIT, LONGROPE, build_long_range, growing_logprobs
from tests.helpers.processes import run_processes
from tests.helpers.runs import largest_difference, rollouts, train_tiny

CLOSE = {"rtol": 1e-5, "atol": 5e-5}
FAST = ("phi3 longrope", "llama dynamic")
SAMPLING = SamplingConfiguration(max_new_tokens=16)
END_IDS = frozenset(range(0, VOCABULARY, 20))

_draw = random.Random(0)


def ids(length: int) -> tuple[int, ...]:
    return tuple(_draw.randrange(3, VOCABULARY) for _ in range(length))


ROOT = ids(12)
CONTEXTS = [ids(6), ROOT + ids(3), ROOT + ids(8), ids(LIMIT + 6), ROOT + ids(18), ROOT + ids(12), ROOT + ids(11)]
CONTINUATIONS = [ids(5), ids(14), ids(7), ids(6), ids(9), ids(1), ids(2)]

some = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ALL]
)


def test_the_sequences_stay_below_the_limit_begin_beyond_it_and_cross_it():
    spans = [(len(context), len(context) + len(ids) - 1) for context, ids in zip(CONTEXTS, CONTINUATIONS, strict=True)]
    assert {(first > LIMIT, last > LIMIT) for first, last in spans} == {(False, False), (True, True), (False, True)}
    assert (LIMIT, LIMIT) in spans


@some
@pytest.mark.parametrize("packing", ["auto", "none"])
def test_log_probs_are_those_of_each_sequence_alone(name: str, packing: str) -> None:
    model = build_long_range(name)
    expected = [growing_logprobs(model, *pair) for pair in zip(CONTEXTS, CONTINUATIONS, strict=True)]
    with torch.no_grad():
        for budget in (1024, 40):
            found = sequence_logprobs(model, CONTEXTS, CONTINUATIONS, packing=packing, token_budget=budget)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in LONGROPE + DYNAMIC]
)
def test_what_reads_by_length_still_packs_and_carries(name: str) -> None:
    model = build_long_range(name)
    assert (can_pack(model), takes_padding(model), carries(model)) == (True, True, True)


@some
@pytest.mark.parametrize("packing", ["auto", "none"])
def test_gradients_are_those_of_each_sequence_alone(name: str, packing: str) -> None:
    """Also of several packs, of which all but one are read again in the backward pass."""
    model = build_long_range(name)
    weight_of = "model.layers.0.input_layernorm.weight"
    expected = 0
    for context, continuation in zip(CONTEXTS, CONTINUATIONS, strict=True):
        for place, token in enumerate(continuation):
            alone = copy.deepcopy(model)
            ids_1T = torch.tensor([[*context, *continuation[:place]]])
            alone(ids_1T, use_cache=False).logits[0, -1].log_softmax(-1)[token].backward()
            expected += alone.get_parameter(weight_of).grad
    found = sequence_logprobs(model, CONTEXTS, CONTINUATIONS, packing=packing, token_budget=40)
    (gradient,) = torch.autograd.grad(torch.cat(found).sum(), model.get_parameter(weight_of))
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@some
@pytest.mark.parametrize("packing", ["auto", "none"])
def test_what_is_read_of_hidden_states_is_that_of_each_sequence_alone(name: str, packing: str) -> None:
    """As the value system reads: here the log-probs once more, by way of the body's output."""
    model = build_long_range(name)
    expected = [growing_logprobs(model, *pair) for pair in zip(CONTEXTS, CONTINUATIONS, strict=True)]
    with torch.no_grad():
        found = sequence_readings(model, CONTEXTS, CONTINUATIONS, head_of(model).logprobs, packing=packing)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def two_turns(model, rows: list[int], memory: PrefixCache | None, batch_rows: int) -> list[tuple]:
    """Contexts and what was said, of two turns of some conversations that continue from one another."""
    contexts = [CONTEXTS[row] for row in rows]
    said = []
    for turn in range(2):
        seeds = [[row, turn] for row in rows]
        scored = [ScoreRequest(len(context) - 4, (*context[-4:], 7)) for context in contexts]
        options = {"end_ids": END_IDS, "batch_rows": batch_rows, "memory": memory, "scored": scored}
        generated = generate(model, contexts, seeds, SAMPLING, **options)
        said += zip(contexts, generated, strict=True)
        contexts = [(*context, *row.ids, *range(10, 14)) for context, row in zip(contexts, generated, strict=True)]
    return said


def assert_alone(model, context: tuple[int, ...], row: Generated) -> None:
    torch.testing.assert_close(torch.tensor(row.logprobs), growing_logprobs(model, context, row.ids), **CLOSE)
    if row.scored is not None:
        expected = growing_logprobs(model, context[:-4], (*context[-4:], 7))
        torch.testing.assert_close(torch.tensor(row.scored), expected, **CLOSE)


@some
@pytest.mark.parametrize("batch_rows", [64, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_sampled_has_the_log_probs_of_each_conversation_alone(name: str, batch_rows: int) -> None:
    """Over two turns, with what was read in the first, and each row is what it is without the others."""
    model = build_long_range(name)
    rows = [*range(len(CONTEXTS)), 1, 1]
    together = two_turns(model, rows, PrefixCache(), batch_rows)
    for context, row in together:
        assert_alone(model, context, row)
    assert {row.ids[-1] in END_IDS for _, row in together} == {True, False}
    alone = two_turns(model, [1], None, 1)
    assert [(context, row.ids) for context, row in alone] == [
        (context, row.ids) for context, row in (together[1], together[len(rows) + 1])
    ]


@pytest.mark.parametrize("name", ["phi3 longrope", pytest.param("phimoe longrope", marks=pytest.mark.slow)])
def test_greedy_across_the_limit_is_the_generate_of_transformers(name: str) -> None:
    """Which drops the cache of these models at the limit, and reads everything anew."""
    model = build_long_range(name)
    sampling = SamplingConfiguration(temperature=0, max_new_tokens=16)
    found = generate(model, CONTEXTS, [[0]] * len(CONTEXTS), sampling, end_ids=END_IDS)
    for context, row in zip(CONTEXTS, found, strict=True):
        whole = model.generate(
            torch.tensor([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.long),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=sorted(END_IDS),
            pad_token_id=0,
        )
        assert tuple(whole[0, len(context) :].tolist()) == row.ids


@pytest.mark.parametrize("name", ["llama dynamic", pytest.param("qwen2 dynamic", marks=pytest.mark.slow)])
def test_no_forward_depends_on_an_earlier_one(name: str) -> None:
    """At the limit itself dynamic scaling continues with the frequencies of the longest forward so far."""
    model = build_long_range(name)
    ids_1T = torch.tensor([[*CONTEXTS[3][:LIMIT]]])
    with torch.no_grad():
        expected = build_long_range(name)(ids_1T).logits
        model(torch.tensor([CONTEXTS[3] * 3]))
        (found,) = sequence_logprobs(model, [CONTEXTS[3][: LIMIT - 3]], [CONTEXTS[3][LIMIT - 3 : LIMIT]])
        alone = growing_logprobs(build_long_range(name), CONTEXTS[3][: LIMIT - 3], CONTEXTS[3][LIMIT - 3 : LIMIT])
        torch.testing.assert_close(found, alone, **CLOSE)
        sequence_logprobs(model, CONTEXTS, CONTINUATIONS)
        torch.testing.assert_close(model(ids_1T).logits, expected)


class Stretched(torch.nn.Module):
    """Rotary embeddings of a kind that nobody knows: positions are stretched where any text is longer than a limit."""

    def __init__(self, rotary: torch.nn.Module, limit: int) -> None:
        super().__init__()
        self.rotary = rotary
        self.original_max_position_embeddings = limit

    def forward(self, states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        longer = position_ids.max() + 1 > self.original_max_position_embeddings
        return self.rotary(states, 3 * position_ids if longer else position_ids)


def test_an_unknown_kind_that_reads_by_length_is_found_out_far_below_its_limit() -> None:
    model = build_long_range("llama yarn")
    model.model.rotary_emb = Stretched(model.model.rotary_emb, 4096)
    assert not can_pack(model)
    assert not carries(model)
    with pytest.raises(UnsupportedModelError, match="can't do decoding with a cache: log-probs differ by"):
        sequence_logprobs(model, CONTEXTS, CONTINUATIONS)
    assert model.model.rotary_emb.original_max_position_embeddings == 4096


def saved_phi3(folder: Path, limit: int = 60) -> Path:
    """With a tokenizer of bytes; its factors change beyond a limit."""
    _, tokenizer = build_tiny("llama")
    rotary = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.5, 2.0, 3.0, 4.0, 8.0, 12.0, 16.0, 30.0],
        "original_max_position_embeddings": limit,
    }
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        intermediate_size=96,
        max_position_embeddings=512,
        original_max_position_embeddings=limit,
        sliding_window=None,
        initializer_range=0.25,
        rope_parameters=rotary,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Phi3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_rollouts_updates_and_values_are_of_one_policy(tmp_path: Path) -> None:
    """Conversations that stay below the limit, come to it in a turn, or begin beyond it."""
    turn = SamplingConfiguration(max_new_tokens=16)
    folder = saved_phi3(tmp_path)
    rollout = RolloutConfiguration(tester=turn, target=turn)
    system = HFASTValueFunctionSystem(folder, folder, rollout=rollout)
    with torch.no_grad():
        for parameter in system.parameters():  # an adapter that says something
            parameter.add_(0.02)
    states = [system.start(prompt) for prompt in ("Hm.", "It rains in " * 4, "It rains. " * 7)]
    said = []
    with system.rolling_out(2):
        for turn_number in range(2):
            seeds = [(row, turn_number) for row in range(len(states))]
            probes = system.rollout_prompt_with_tester(states, seeds=seeds)
            asked = [state + probe for state, probe in zip(states, probes, strict=True)]
            responses = system.rollout_prompt_with_target(asked, seeds=seeds)
            said += zip(states, probes, responses, strict=True)
            states = [system.advance(*turn) for turn in zip(states, probes, responses, strict=True)]
    contexts, probes, responses = map(list, zip(*said, strict=True))
    heard = system.get_target_logprobs(contexts, probes)
    updated = system.get_tester_logprobs(contexts, probes).detach()
    read = system.read_tester(contexts, probes, ["logprobs", "values"])
    torch.testing.assert_close(read["logprobs"].detach(), updated, **CLOSE)
    values = system.read_tester(contexts[:1], probes[:1], ["values"])["values"]
    torch.testing.assert_close(read["values"][0, : values.shape[1]], values[0], **CLOSE)
    tester = copy.deepcopy(system.tester).merge_and_unload()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    kinds = set()
    for row, (state, probe, response) in enumerate(said):
        of_tester = system.views.tester.own_turn(state, turn.max_new_tokens)
        kinds.add((len(of_tester) > 60, len(of_tester) + len(probe.sampled_ids) - 1 > 60))
        expected = growing_logprobs(tester, of_tester, probe.sampled_ids)
        torch.testing.assert_close(torch.tensor(probe.sampled_logprobs), expected, **CLOSE)
        torch.testing.assert_close(updated[row, : len(expected)], expected, **CLOSE)
        of_target = system.views.target.other_turn(state, len(probe.target_ids))
        if probe.target_ids:
            expected = growing_logprobs(base, of_target, probe.target_ids)
            torch.testing.assert_close(heard[row, : len(expected)], expected, **CLOSE)
        expected = growing_logprobs(base, of_target + probe.target_ids, response.sampled_ids)
        torch.testing.assert_close(torch.tensor(response.sampled_logprobs), expected, **CLOSE)
    assert kinds == {(False, False), (False, True), (True, True)}


@pytest.mark.slow
def test_processes_with_other_lengths_train_sharded_weights_together(tmp_path: Path) -> None:
    """All make as many forwards, whether their conversations cross the limit or not."""
    folder = saved_phi3(tmp_path / "phi3", limit=100)
    run_processes(1, _train, tmp_path / "one", folder, "ddp")
    run_processes(2, _train, tmp_path / "two", folder, "fsdp2")
    said = rollouts(tmp_path / "one")
    assert said == rollouts(tmp_path / "two")
    # A byte is a token.
    lengths = [len(row["context"].encode()) for step in said for row in step]
    assert min(lengths) < 80 < 100 < max(lengths)
    one, two = (load_file(tmp_path / run / "tester" / "adapter_model.safetensors") for run in ("one", "two"))
    assert largest_difference(one, two) < 1e-5
    assert max(float(tensor.abs().max()) for name, tensor in two.items() if "lora_B" in name) > 1e-3


def _train(output_dir: Path, model: Path, kind: str) -> None:
    settings = {"training.training_steps": 2, "training.save_steps": "null", "training.eval_steps": "null"}
    settings |= {"tester.path": model, "target.path": model}
    overrides = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    train_tiny(output_dir, *overrides, launch_kind=kind)
