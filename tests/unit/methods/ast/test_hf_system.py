"""The system of transformers models: what is sampled is what is scored, judged and trained on.

The oracle of every log-prob is a plain forward of one whole sequence by a model that was built apart.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_accel.algorithms.grpo import GRPO
from astra_accel.config import (
    ComputeConfiguration,
    LoRAConfiguration,
    ModelConfiguration,
    RewardConfiguration,
    RolloutConfiguration,
    SamplingConfiguration,
)
from astra_accel.core.sampler import Graph, Node
from astra_accel.core.scorer import Scorer
from astra_accel.files.tables import rollout_rows, write_table
from astra_accel.methods.ast import ASTSampler, ASTSystem, HFASTSystem, Segment, Transcript
from astra_accel.models import language_model
from astra_accel.models.decoding.generation import Generated
from astra_accel.models.loading import model_files as files_module
from astra_accel.models.loading.tiny import build_tiny, save_tiny
from astra_accel.models.roles import find_roles
from tests.helpers import templates
from tests.helpers.tokenizer_kinds import TOKENIZERS

LORA = LoRAConfiguration(r=4, alpha=8)
PROMPTS = ["So I said", "Hm", "What do you think of caf\u00e9s?"]
CLOSE = {"rtol": 0, "atol": 1e-4}

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")


class Checksum(Scorer):
    """Every letter of a text counts."""

    def score(self, texts):
        return [zlib.crc32(text.encode()) % 1000 / 1000 for text in texts]


def rollout(**options: object) -> RolloutConfiguration:
    sampling = SamplingConfiguration(top_k=8, max_new_tokens=6)
    return RolloutConfiguration(**({"tester": sampling, "target": sampling} | options))


def make(tester: str | Path = "tiny", target: str | Path = "tiny", **options: object) -> HFASTSystem:
    defaults = {"scorer": Checksum(), "lora": LORA, "rollout": rollout()}
    return HFASTSystem(tester, target, **(defaults | options))


def seeds(count: int = len(PROMPTS)) -> list[tuple[int, ...]]:
    return [(1, row) for row in range(count)]


def move(system: HFASTSystem) -> None:
    """Move the tester's weights, as training does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def plain(model, context: tuple[int, ...], continuation: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)
    return logprobs[torch.arange(len(continuation)) + len(context) - 1, list(continuation)]


def alone_as_tester(system: HFASTSystem, folder: Path):
    system.save_pretrained(folder)
    return PeftModel.from_pretrained(build_tiny("llama")[0], folder).merge_and_unload()


def turns(system: HFASTSystem, depth: int = 2) -> list[tuple[Transcript, Segment, Segment]]:
    """Contexts, probes and responses of conversations of some turns."""
    states = [system.start(prompt) for prompt in PROMPTS]
    found = []
    for turn in range(depth):
        own_seeds = [(*seed, turn) for seed in seeds()]
        probes = system.rollout_prompt_with_tester(states, seeds=own_seeds)
        asked = [state + probe for state, probe in zip(states, probes, strict=True)]
        responses = system.rollout_prompt_with_target(asked, seeds=own_seeds)
        found += zip(states, probes, responses, strict=True)
        states = [system.advance(*turn) for turn in zip(states, probes, responses, strict=True)]
    return found


def assert_rows(found: torch.Tensor, expected: list[torch.Tensor]) -> None:
    assert found.dtype == torch.float32
    assert found.shape == (len(expected), max(map(len, expected)))
    for row, values in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(values)].detach(), values, **CLOSE)
        assert not row[len(values) :].any()


def naturalness(system: HFASTSystem, contexts: list, probes: list) -> list[float]:
    parts = system.reward_parts(contexts, probes, ["y"] * len(probes))
    return [row["naturalness"] for row in parts]


# --- Log-probs ----------------------------------------------------------------------------------------------


def test_log_probs_are_those_of_the_running_text(tmp_path):
    """Raw: <s>, the text so far, and the probe with its end; to the target, which answers it, without."""
    system = make()
    move(system)
    contexts, probes, _ = zip(*turns(system), strict=True)
    # Some end by themselves, one of them at once.
    (end_id,) = end_ids = system.roles.tester.files.end_ids
    ended = [system.views.probe((*probe.tester_ids[:count], end_id), end_ids) for count, probe in enumerate(probes)]
    contexts, probes = contexts * 2, [*probes, *ended]
    tester, base = alone_as_tester(system, tmp_path), build_tiny("llama")[0]
    bos = (build_tiny("llama")[1].bos_token_id,)
    read = [bos + sum((segment.tester_ids for segment in context.segments), ()) for context in contexts]
    sampled = [probe.sampled_ids for probe in probes]
    content = [probe.target_ids for probe in probes]
    for logprobs, model, said in (
        (system.get_tester_logprobs, tester, sampled),
        (system.get_baseline_logprobs, base, sampled),
        (system.get_target_logprobs, base, content),
    ):
        assert_rows(logprobs(contexts, probes), [plain(model, *pair) for pair in zip(read, said, strict=True)])


def test_log_probs_are_those_of_the_chat(tmp_path):
    """The tester writes as the assistant; the target hears the probe as the user says it."""
    system = make(rollout=rollout(format="chat", tester_instruction="Provoke.", target_instruction="Be kind."))
    move(system)
    tokenizer = build_tiny("llama")[1]
    # A conversation of plain text, so that the template itself can render it.
    context = system.start("hi") + system._probe("say more") + system.views.segment("response", "no")
    probe = system.views.probe((*tokenizer("why", add_special_tokens=False).input_ids, 259), frozenset([259]))
    as_tester = [("system", "Provoke."), ("user", "hi"), ("assistant", "say more"), ("user", "no")]
    as_target = [("system", "Be kind."), ("user", "hi\nsay more"), ("assistant", "no"), ("user", "why")]

    def render(messages, **options):
        conversation = [{"role": role, "content": content} for role, content in messages]
        return tuple(tokenizer.apply_chat_template(conversation, return_dict=False, **options))

    tester, base = alone_as_tester(system, tmp_path), build_tiny("llama")[0]
    written = render(as_tester, add_generation_prompt=True)
    assert_rows(system.get_tester_logprobs([context], [probe]), [plain(tester, written, probe.sampled_ids)])
    assert_rows(system.get_baseline_logprobs([context], [probe]), [plain(base, written, probe.sampled_ids)])
    heard = render(as_target)[: -len("why") - 2]  # the end of the turn and its newline
    assert_rows(system.get_target_logprobs([context], [probe]), [plain(base, heard, probe.target_ids)])
    assert tokenizer.decode(heard).endswith("no<|im_end|>\n<|im_start|>user\n")


def test_with_two_tokenizers_each_model_reads_its_own_ids(tmp_path):
    system = make("tiny:llama", "tiny:gpt2")
    move(system)
    context, probe, response = turns(system)[3]
    llama, gpt2 = build_tiny("llama")[1], build_tiny("gpt2")[1]
    assert context.segments[0].tester_ids == tuple(llama("So I said", add_special_tokens=False).input_ids)
    assert probe.target_ids == tuple(gpt2(probe.text).input_ids)
    assert response.tester_ids == tuple(llama(response.text, add_special_tokens=False).input_ids)
    in_llama = (256, *(token for segment in context.segments for token in segment.tester_ids))
    in_gpt2 = tuple(token for segment in context.segments for token in segment.target_ids)
    tester = alone_as_tester(system, tmp_path)
    assert_rows(system.get_tester_logprobs([context], [probe]), [plain(tester, in_llama, probe.sampled_ids)])
    target = plain(build_tiny("gpt2")[0], in_gpt2, probe.target_ids)
    assert_rows(system.get_target_logprobs([context], [probe]), [target])
    assert naturalness(system, [context], [probe]) == pytest.approx([max(target.mean().item(), -10)], abs=1e-4)


def test_only_the_tester_has_a_gradient():
    system = make()
    context, probe = [system.start("a")], ["b"]
    assert system.get_tester_logprobs(context, probe).requires_grad
    assert not system.get_baseline_logprobs(context, probe).requires_grad
    assert not system.get_target_logprobs(context, probe).requires_grad
    system.get_tester_logprobs(context, probe).sum().backward()
    parameters = list(system.parameters())
    assert len(parameters) == 2 * 2 * 7  # A and B, layers, linear modules
    assert all(parameter.grad is not None for parameter in parameters)
    assert not any(
        parameter.grad is not None for parameter in system.tester.parameters() if not parameter.requires_grad
    )


def test_strings_will_do():
    system = make()
    state, probe = system.start("So I said"), system.views.segment("probe", " no")
    for name in ("get_tester_logprobs", "get_baseline_logprobs", "get_target_logprobs"):
        method = getattr(system, name)
        torch.testing.assert_close(method(["So I said"], [" no"]), method([state], [probe]))
    assert naturalness(system, ["So I said"], [" no"]) == pytest.approx(naturalness(system, [state], [probe]))
    said = system.rollout_prompt_with_tester(["So I said"], seeds=seeds(1))
    assert said == system.rollout_prompt_with_tester([state], seeds=seeds(1))
    heard = system.rollout_prompt_with_target(["So I said"], seeds=seeds(1))
    assert heard == system.rollout_prompt_with_target([state], seeds=seeds(1))


def test_a_probe_is_scored_in_the_context_that_it_was_sampled_in():
    """Near the limit what is dropped depends on the room for new tokens: always that of a whole turn."""
    num_read = set()
    for limit in range(10, 19):
        system = make(rollout=rollout(context_limit=limit))
        state = system.start("abcde") + system._probe("fgh") + system.views.segment("response", "ijk")
        system.get_tester_logprobs([state], system.rollout_prompt_with_tester([state]))  # finds out what the model can
        read = []
        embeddings = system.roles.tester.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda module, args, output, read=read: read.append(args[0][0].tolist()))
        (probe,) = system.rollout_prompt_with_tester([state], seeds=[(0,)])
        sampled_in = read[0]
        read.clear()
        short = system.views.probe(probe.sampled_ids[:1], frozenset())
        system.get_tester_logprobs([state], [short])
        assert read == [sampled_in]  # the one token of the probe is only predicted
        num_read.add(len(sampled_in))
    assert num_read == {1 + 3, 1 + 3 + 3, 1 + 5 + 3 + 3}


def test_tokens_are_counted_once_each():
    """In letters, ``<s>`` first: ab|cd, ab|ce and abc|d. The last token of a sequence is only predicted."""
    system = make()
    assert system.num_tokens(["ab"], ["cd"]) == len("<ab") + 1
    assert system.num_tokens(["ab", "ab"], ["cd", "ce"]) == len("<abc")
    assert system.num_tokens(["ab", "abc"], ["cdx", "ex"]) == len("<abcd") + len("e")
    assert system.num_tokens(["ab", "x"], ["cd", "y"]) == len("<abc") + len("x")
    ended = system.views.probe((*system.views.segment("probe", "cd").tester_ids, 259), frozenset([259]))
    assert system.num_tokens(["ab"], [ended]) == len("<abcd")


# --- What a rollout said already ----------------------------------------------------------------------------


@pytest.fixture
def adapters(tmp_path) -> list[ModelConfiguration]:
    """The tiny model with each of two adapters."""
    made = []
    for number in range(2):
        system = make(seed=number)
        move(system)
        system.save_pretrained(tmp_path / str(number))
        made.append(ModelConfiguration(path="tiny", adapter=str(tmp_path / str(number))))
    return made


@contextmanager
def forwards(system: HFASTSystem) -> Iterator[list[int]]:
    """The tokens of every forward of the baseline's model inside."""
    found: list[int] = []
    embeddings = system.roles.baseline.model.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, args, output: found.append(args[0].numel()))
    try:
        yield found
    finally:
        hook.remove()


def rolled_out(system: HFASTSystem, depth: int = 2) -> tuple[list[Transcript], list[Segment]]:
    """Contexts and probes of one rollout."""
    with system.rolling_out():
        contexts, probes, _ = zip(*turns(system, depth), strict=True)
    return list(contexts), list(probes)


def written_in(system: HFASTSystem, context: Transcript) -> tuple[int, ...]:
    """What the tester reads of a raw context."""
    return (256, *(token for segment in context.segments for token in segment.tester_ids))


@pytest.mark.parametrize(("target", "baseline"), [(None, None), (0, 0), (None, 0), (0, 1), (0, None)])
def test_the_baseline_says_nothing_twice(target, baseline, adapters):
    """The target reads each probe to answer it; where it is the baseline too, its log-probs are known by then."""
    roles = {name: "tiny" if number is None else adapters[number] for name, number in (("t", target), ("b", baseline))}
    system = make(ModelConfiguration(path="tiny"), roles["t"], baseline_model_id=roles["b"])
    move(system)
    contexts, probes = rolled_out(system)
    oracle = build_tiny("llama")[0]
    if baseline is not None:
        oracle = PeftModel.from_pretrained(oracle, adapters[baseline].adapter).merge_and_unload()
    expected = [
        plain(oracle, written_in(system, context), probe.sampled_ids)
        for context, probe in zip(contexts, probes, strict=True)
    ]

    assert_rows(system.get_baseline_logprobs(contexts, probes), expected)
    # A probe with a special token is another text to the target; all others it read as the baseline would.
    alike = [row for row, probe in enumerate(probes) if probe.target_ids == probe.tester_ids]
    assert len(alike) > len(probes) / 2
    with forwards(system) as read:
        system.get_baseline_logprobs([contexts[row] for row in alike], [probes[row] for row in alike])
    assert (read == []) == (target == baseline)


def test_the_end_of_a_probe_is_known_too():
    """The target reads on in the text, where no turn ends; the baseline is asked for the end all the same."""
    system = make()
    state = system.start("So I said")
    content = system.views.segment("probe", " no").tester_ids
    ended = [system.views.probe((*ids, 259), frozenset([259])) for ids in (content, content[:1], ())]
    with system.rolling_out():
        system.rollout_prompt_with_target([state + probe for probe in ended], seeds=seeds())
    with forwards(system) as read:
        found = system.get_baseline_logprobs([state] * 3, ended)
    assert read == []
    written = written_in(system, state)
    assert_rows(found, [plain(build_tiny("llama")[0], written, probe.sampled_ids) for probe in ended])


def test_the_target_says_nothing_twice():
    """Rewards ask for log-probs of the probes that the target has read."""
    system = make()
    move(system)
    with system.rolling_out():
        contexts, probes, _ = zip(*turns(system), strict=True)
        with forwards(system) as read:
            found = system.get_target_logprobs(contexts, probes)
    assert read == []
    expected = [
        plain(build_tiny("llama")[0], written_in(system, context), probe.target_ids)
        for context, probe in zip(contexts, probes, strict=True)
    ]
    assert_rows(found, expected)


def test_probes_of_no_rollout_stand_beside_those_that_are_known():
    system = make()
    contexts, probes = rolled_out(system)
    new = system.views.segment("probe", " of no rollout")
    mixed, unknown = [new, probes[0], new, probes[-1]], [contexts[0], contexts[0], contexts[-1], contexts[-1]]
    expected = [
        plain(build_tiny("llama")[0], written_in(system, context), probe.sampled_ids)
        for context, probe in zip(unknown, mixed, strict=True)
    ]
    assert_rows(system.get_baseline_logprobs(unknown, mixed), expected)


def test_the_next_rollout_forgets():
    system = make()
    contexts, probes = rolled_out(system)
    known = system.get_baseline_logprobs(contexts, probes)
    with system.rolling_out():
        pass
    with forwards(system) as read:
        anew = system.get_baseline_logprobs(contexts, probes)
    assert sum(read) > 0
    torch.testing.assert_close(anew, known, **CLOSE)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        *(("tiny", {"context_limit": limit}) for limit in (36, 40, 44)),
        ("tiny", {"format": "chat"}),
        ("tiny:gpt2", {"context_limit": 40}),
    ],
    ids=str,
)
def test_what_is_known_is_what_would_be_computed(target, options):
    """Also where tester and target read something else of the conversation: other turns dropped, other formats."""
    system = make("tiny", target, rollout=rollout(**options))
    move(system)
    with system.rolling_out():
        contexts, probes, _ = zip(*turns(system, depth=3), strict=True)
        inside = system.get_target_logprobs(contexts, probes)
    baseline = system.get_baseline_logprobs(contexts, probes)
    with system.rolling_out():
        pass
    torch.testing.assert_close(baseline, system.get_baseline_logprobs(contexts, probes), **CLOSE)
    torch.testing.assert_close(inside, system.get_target_logprobs(contexts, probes), **CLOSE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tester_that_is_the_baseline_has_no_margin_in_bf16(dtype):
    """A new adapter changes nothing. In the way of updates both models say the same to the bit, rolled out or not."""
    same = ModelConfiguration(path="tiny", dtype=dtype)
    system = make(same, same)
    contexts, probes = rolled_out(system)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "float32"):
        tester, baseline = (
            each(contexts, probes) for each in (system.get_tester_logprobs, system.get_baseline_logprobs)
        )
    assert torch.equal(tester, baseline)
    assert tester.abs().max() > 1


@pytest.mark.parametrize("way", ["float32", "autocast", "bfloat16"])
def test_how_far_sampling_and_training_are_apart(way, tmp_path):
    """Old log-probs are those of a plain forward a sequence in the precision of updates."""
    same = ModelConfiguration(path="tiny", dtype="bfloat16" if way == "bfloat16" else "float32")
    system = make(same, same)
    contexts, probes = rolled_out(system)
    sampled = system.sampled_logprobs(probes)
    assert sampled == [probe.sampled_logprobs for probe in probes]
    assert system.sampled_logprobs(["words of nobody"]) == [None]
    algorithm = GRPO(system)
    graphs = [Graph(state, [Node(state, probe, probe, 1.0)]) for state, probe in zip(contexts, probes, strict=True)]
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        steps = algorithm.precompute([step for graph in graphs for step in algorithm.flatten(graph)])
        _, logs = algorithm.step(algorithm.collate_fn(algorithm.prepare(steps)))
        oracle = build_tiny("llama")[0].to(torch.bfloat16 if way == "bfloat16" else torch.float32)
        for state, step in zip(contexts, steps, strict=True):
            ids = written_in(system, state)
            expected = plain(oracle, ids, step.probe.sampled_ids)
            rounding = 1e-4 if way == "float32" else 0.3
            torch.testing.assert_close(torch.tensor(step.old_logprobs), expected.float(), rtol=0, atol=rounding)
    gaps = torch.cat([torch.tensor(step.old_logprobs) - torch.tensor(step.behaviour_logprobs) for step in steps])
    assert [step.behaviour_logprobs for step in steps] == sampled
    if way == "float32":
        assert gaps.abs().max() < 1e-5
        assert logs["grpo/importance_weight"].item() == pytest.approx(1, abs=1e-5)
    else:
        assert 1e-4 < gaps.abs().mean() < 0.1
        assert logs["grpo/importance_capped"] == 0


def test_a_segment_keeps_the_log_probs_that_it_was_sampled_with():
    system = make()
    move(system)
    contexts, probes = rolled_out(system)
    logprobs = system.get_tester_logprobs(contexts, probes)
    assert_rows(logprobs, [torch.tensor(probe.sampled_logprobs) for probe in probes])
    assert system.views.segment("probe", "no").sampled_logprobs is None


# --- Rolling out --------------------------------------------------------------------------------------------


def test_a_merged_adapter_says_the_same():
    merged, apart = (make(compute=ComputeConfiguration(merge_adapter=merge)) for merge in (True, False))
    for system in (merged, apart):
        move(system)
    before = [parameter.detach().clone() for parameter in merged.tester.parameters()]
    with merged.rolling_out(), apart.rolling_out():
        assert turns(merged, depth=3) == turns(apart, depth=3)
    # The adapter is out of the weights again, to the bit.
    assert all(torch.equal(*pair) for pair in zip(before, merged.tester.parameters(), strict=True))
    # It did speak: without it the probes are others.
    assert turns(merged, depth=1) != turns(make(), depth=1)


@pytest.mark.parametrize("merge_adapter", [True, False])
def test_what_fails_in_a_rollout_leaves_the_tester_as_it_was(merge_adapter):
    system = make(compute=ComputeConfiguration(merge_adapter=merge_adapter))
    move(system)
    switch = system.roles.tester.switch
    before = system.get_tester_logprobs(["So I said"], [" no"])

    def fail_while_the_tester_speaks() -> None:
        with system.rolling_out():
            turns(system)
            with system.roles.tester.switch():
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_the_tester_speaks()
    assert system.roles.tester.switch is switch
    assert system.roles.tester.generator.memory is system.roles.target.generator.memory is None
    after = system.get_tester_logprobs(["So I said"], [" no"])
    assert torch.equal(after, before)
    after.sum().backward()
    assert all(parameter.grad is not None for parameter in system.parameters())


def overflow(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.inf)


@pytest.mark.parametrize("role", ["tester", "target"])
@pytest.mark.parametrize("turn", [1, 2])
def test_logits_that_are_not_finite_are_an_error_that_names_role_and_turn(role, turn, tmp_path):
    """In the first turn, where the model is new, and in the second one of a conversation that went well so far."""
    system = make(target=save_tiny(tmp_path / "target", "llama"), lora=None)
    states = [system.start(prompt) for prompt in PROMPTS]
    if turn == 2:
        states = [system.advance(*each) for each in turns(system, depth=1)]
    probes = system.rollout_prompt_with_tester(states, seeds=seeds(len(states)))
    asked = states if role == "tester" else [state + probe for state, probe in zip(states, probes, strict=True)]
    speak = system.rollout_prompt_with_tester if role == "tester" else system.rollout_prompt_with_target
    overflow(getattr(system.roles, role).model)
    message = rf"the {role}'s logits are not finite \(nan or inf\) in turn {turn} of a rollout"
    with pytest.raises(FloatingPointError, match=message):
        speak(asked, seeds=seeds(len(states)))


@pytest.mark.parametrize("model", ["target", "baseline"])
def test_naturalness_that_is_not_finite_names_the_model(model, tmp_path):
    other = save_tiny(tmp_path / "other", "llama")
    system = make(target=other, baseline_model_id=other, lora=None)
    states = [system.start(prompt) for prompt in PROMPTS]
    probes = system.rollout_prompt_with_tester(states, seeds=seeds())
    overflow(system.roles.target.model)
    with pytest.raises(FloatingPointError, match=f"the {model}'s logits are not finite .* in turn 1 of a rollout"):
        system.probe_logprobs(states, probes, model)


def test_layers_that_can_not_be_checkpointed_are_an_error(monkeypatch):
    monkeypatch.setattr("astra_accel.methods.ast.hf_system.checkpointed_layers", lambda model: [])
    with pytest.raises(ValueError, match=r"compute\.activation_checkpointing is set, but tiny:llama has no layers"):
        make(compute=ComputeConfiguration(activation_checkpointing=True))


# --- Rollouts -----------------------------------------------------------------------------------------------


def test_a_row_follows_from_its_seed_alone():
    system = make()
    states = [system.start(prompt) for prompt in PROMPTS]
    together = system.rollout_prompt_with_tester(states, seeds=seeds())
    alone = [system.rollout_prompt_with_tester([states[row]], seeds=[seeds()[row]])[0] for row in range(len(PROMPTS))]
    assert together == alone
    assert together != system.rollout_prompt_with_tester(states, seeds=[(2, row) for row in range(len(PROMPTS))])
    small = make(rollout=rollout(batch_rows=1))
    assert small.rollout_prompt_with_tester(states, seeds=seeds()) == together


def test_tester_and_target_draw_apart():
    """The same model, the same text and the same seed: yet two draws."""
    system = make()
    states = [system.start(prompt) for prompt in PROMPTS]
    probes = system.rollout_prompt_with_tester(states, seeds=seeds())
    responses = system.rollout_prompt_with_target(states, seeds=seeds())
    assert [probe.tester_ids for probe in probes] != [response.target_ids for response in responses]


def test_without_seeds_the_global_generator_decides():
    system = make()
    states = [system.start(prompt) for prompt in PROMPTS]
    for role in (system.rollout_prompt_with_tester, system.rollout_prompt_with_target):
        torch.manual_seed(3)
        first, second = role(states), role(states)
        torch.manual_seed(3)
        assert role(states) == first
        assert second != first


@pytest.mark.parametrize("target", ["tiny:llama", "tiny:gpt2"])
def test_each_writes_with_its_own_settings(target):
    sampling = {
        "tester": SamplingConfiguration(temperature=0, max_new_tokens=3),
        "target": SamplingConfiguration(temperature=0, max_new_tokens=5),
    }
    system = make("tiny:llama", target, rollout=rollout(**sampling))
    state = system.start("So I said")
    (probe,) = system.rollout_prompt_with_tester([state])
    (response,) = system.rollout_prompt_with_target([state + probe])
    for architecture, segment, count, context in (
        ("llama", probe, 3, state),
        (target.removeprefix("tiny:"), response, 5, state + probe),
    ):
        model, tokenizer = build_tiny(architecture)
        ids = torch.tensor([tokenizer(str(context)).input_ids])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
        assert segment.sampled_ids == tuple(whole[0, ids.shape[1] :].tolist())
        assert segment.text == tokenizer.decode(segment.sampled_ids, skip_special_tokens=True)


# --- Reward -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "separator"), [("raw", ""), ("chat", "\n")])
def test_the_reward_of_turns(format, separator):
    system = make(rollout=rollout(format=format), ppl_weight=0.5, combined_weight=3.0, defense_toxicity_weight=0.25)
    contexts, probes, responses = zip(*turns(system), strict=True)
    logprobs = system.get_target_logprobs(contexts, probes)
    for index, parts in enumerate(system.reward_parts(contexts, probes, responses)):
        probe, response = probes[index], responses[index]
        (both,) = Checksum().score([f"{probe.text}{separator}{response.text}"])
        (alone,) = Checksum().score([response.text])
        natural = max(logprobs[index, : len(probe.target_ids)].mean().item(), -10) if probe.target_ids else -10
        expected = {"combined_score": both, "response_score": alone, "naturalness": natural}
        assert {name: parts[name] for name in expected} == pytest.approx(expected, abs=1e-5)
        assert parts["reward"] == pytest.approx(3 * both + 0.25 * alone + 0.5 * natural, abs=1e-5)


def test_naturalness_is_the_mean_log_prob_under_the_target():
    target, tokenizer = build_tiny("qwen2")
    system = make("tiny:qwen2", "tiny:qwen2", min_naturalness=-1000.0)
    move(system)
    context, probe = tuple(tokenizer("So I said").input_ids), tuple(tokenizer(" no way").input_ids)
    expected = plain(target, context, probe).mean().item()
    assert naturalness(system, ["So I said"], [" no way"]) == pytest.approx([expected], abs=1e-4)
    # By any number of other rows: counts are of tokens, not of columns.
    assert naturalness(system, ["So I said", "x"], [" no way", "y" * 50])[0] == pytest.approx(expected, abs=1e-4)


def test_naturalness_leaves_the_end_of_the_turn_out_whichever_model_it_is_of(tmp_path):
    """The baseline is what the tester began as, the target another model; the end is sampled, and not what is said."""
    system = make("tiny", save_tiny(tmp_path, "llama", seed=6), min_naturalness=-1000.0)
    move(system)
    tokenizer = build_tiny("llama")[1]
    context, content = tuple(tokenizer("So I said").input_ids), tuple(tokenizer(" no way").input_ids[1:])
    said = system.views.probe((*content, 259), frozenset([259]))
    assert said.sampled_ids == (*content, 259)
    for model, seed in (("target", 6), ("baseline", 0)):
        (row,) = system.probe_logprobs(["So I said"], [said], model)
        torch.testing.assert_close(row, plain(build_tiny("llama", seed=seed)[0], context, content), **CLOSE)


def test_what_the_baseline_said_for_the_reward_is_not_computed_again(monkeypatch, tmp_path):
    """The baseline is not the target, so a rollout does not read probes with it by itself."""
    system = make("tiny", save_tiny(tmp_path, "llama", seed=6), naturalness_model="baseline")
    with system.rolling_out():
        contexts, probes, responses = zip(*turns(system), strict=True)
        expected = system.get_baseline_logprobs(contexts, probes)
        system.reward_parts(contexts, probes, responses)
    computed = []
    original = language_model.sequence_logprobs
    monkeypatch.setattr(
        language_model,
        "sequence_logprobs",
        lambda model, contexts, *rest, **options: (
            computed.extend(contexts) or original(model, contexts, *rest, **options)
        ),
    )
    assert torch.equal(system.get_baseline_logprobs(contexts, probes), expected)
    assert computed == []


@pytest.mark.parametrize("model", ["target", "baseline"])
def test_an_empty_probe_earns_the_minimum(model):
    system = make(min_naturalness=-4.0, naturalness_model=model)
    silent = system.views.probe((259,), frozenset([259]))
    assert silent.sampled_ids == (259,)
    assert naturalness(system, ["a", "a"], [silent, ""]) == [-4.0, -4.0]


def test_a_token_that_is_certain_counts(monkeypatch):
    """Log-probs 0 and -2 of a probe of two tokens: the mean is -1, not -2."""
    system = make()
    monkeypatch.setattr(system, "get_target_logprobs", lambda context, probe: torch.tensor([[0.0, -2.0]]))
    assert naturalness(system, ["a"], ["bc"]) == [-1.0]


# --- Making one ---------------------------------------------------------------------------------------------


def test_ast_system_is_a_system_of_the_embedded_model(monkeypatch, tmp_path):
    folder = save_tiny(tmp_path, "llama", seed=6)
    monkeypatch.setattr(files_module, "embedded_model_path", lambda: folder)
    system = ASTSystem()
    assert type(system) is HFASTSystem
    assert type(system.scorer).__name__ == "ProfanityScorer"
    assert system.roles.tester.model is system.roles.target.model is system.roles.baseline.model
    assert system.roles.tester.files.source == str(folder)
    assert all("lora_" in name for name, parameter in system.tester.named_parameters() if parameter.requires_grad)
    found = system.get_target_logprobs(["a"], ["b"])
    tokenizer = build_tiny("llama")[1]
    expected = plain(
        build_tiny("llama", seed=6)[0], tuple(tokenizer("a").input_ids), tuple(tokenizer("b").input_ids[1:])
    )
    assert_rows(found, [expected])


def test_models_are_given_in_several_ways(tmp_path):
    folder = save_tiny(tmp_path, "llama", seed=6)
    for path in (folder, str(folder), ModelConfiguration(path=str(folder))):
        system = ASTSystem("tiny", path, "tiny", Checksum(), "cpu")
        assert [role.files.source for role in (system.roles.tester, system.roles.target, system.roles.baseline)] == [
            "tiny:llama",
            str(folder),
            "tiny:llama",
        ]
    with pytest.raises(TypeError, match="baseline_model_id is a int; expected a hub id, a folder or a Model"):
        HFASTSystem("tiny", "tiny", 3)


def test_of_makes_the_same_system():
    tiny = ModelConfiguration(path="tiny")
    reward = RewardConfiguration(ppl_weight=7.0, min_naturalness=-3.0)
    made = HFASTSystem.from_files(find_roles(tiny, tiny, None, LORA), Checksum(), "cpu", rollout(), reward=reward)
    other = make(ppl_weight=7.0, min_naturalness=-3.0)
    contexts, probes, responses = zip(*turns(other), strict=True)
    assert turns(made) == turns(other)
    assert made.reward(contexts, probes, responses) == other.reward(contexts, probes, responses)


def test_a_new_adapter_follows_from_its_seed_alone():
    made = []
    for global_seed, options in ((1, {}), (2, {}), (1, {"seed": 3})):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        made.append([parameter.detach() for parameter in make(**options).parameters()])
        assert torch.equal(torch.get_rng_state(), before)
    first, again, other = made
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, other, strict=True))


def test_prompts_are_checked():
    system = make(rollout=rollout(context_limit=20))
    system.check_prompts(["short"])
    with pytest.raises(ValueError, match="prompts, row 2 is too long"):
        system.check_prompts(["short", "not so short"])


def test_every_trained_parameter_is_used():
    for lora in (LORA, None):
        system = make(lora=lora)
        assert system.uses_every_parameter
        system.get_tester_logprobs(["So I said"], [" no"]).sum().backward()
        assert all(parameter.grad is not None for parameter in system.parameters())


# --- Saving -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
def test_a_saved_adapter_is_the_tester(tmp_path, adapter):
    """Also where a frozen copy of the first adapter stands beside it, which is not saved."""
    tester = ModelConfiguration(path="tiny")
    if adapter:
        first = make()
        move(first)
        first.save_pretrained(tmp_path / "first")
        tester = ModelConfiguration(path="tiny", adapter=str(tmp_path / "first"))
    system = make(tester)
    move(system)
    system.save_pretrained(tmp_path / "tester")
    names = {path.name for path in (tmp_path / "tester").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not any((tmp_path / "tester" / name).is_dir() for name in names)
    loaded = make(ModelConfiguration(path="tiny", adapter=str(tmp_path / "tester")))
    torch.testing.assert_close(
        loaded.get_tester_logprobs(PROMPTS, PROMPTS), system.get_tester_logprobs(PROMPTS, PROMPTS), rtol=0, atol=1e-6
    )


def test_a_saved_model_is_the_tester(tmp_path):
    system = make(lora=None)
    move(system)
    system.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("So I said").input_ids
    expected = plain(loaded, tuple(ids[:3]), tuple(ids[3:]))
    found = system.roles.tester.logprobs([tuple(ids[:3])], [tuple(ids[3:])])[0]
    torch.testing.assert_close(found.detach(), expected, **CLOSE)
    assert all(torch.equal(loaded.state_dict()[name], values) for name, values in system.tester.state_dict().items())


# --- Texts and ends of turns --------------------------------------------------------------------------------


def save_with(folder: Path, tokenizer: object, template: str | None = None) -> Path:
    """A tiny Llama with another tokenizer."""
    model = build_tiny("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)[0]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama2", "gemma", "llama3"])
def test_transcripts_and_scorers_get_the_text_that_is_read(tmp_path, kind):
    """Sampled turns of one running text, with every token as likely as any: half characters, spaces, bytes."""
    folder = save_with(tmp_path / "model", TOKENIZERS[kind]())
    system = make(folder, folder, rollout=rollout(tester={"max_new_tokens": 6}, target={"max_new_tokens": 6}))
    tokenizer = system.views.tester_tokenizer
    special = system.views.tester.format.codec.special_ids
    states, compared = [system.start("Good morning")] * 12, 0
    for turn in range(3):
        numbers = [(row, turn) for row in range(len(states))]
        probes = system.rollout_prompt_with_tester(states, seeds=numbers)
        asked = [state + probe for state, probe in zip(states, probes, strict=True)]
        responses = system.rollout_prompt_with_target(asked, seeds=numbers)
        before, states = states, []
        for state, probe, response in zip(before, probes, responses, strict=True):
            if special.isdisjoint((*probe.tester_ids, *response.target_ids)):
                states.append(system.advance(state, probe, response))
                read = tokenizer.decode(system.views.tester.own_turn(states[-1], 1), skip_special_tokens=True)
                assert str(states[-1]) == read
                assert read.endswith(system.exchange_text(probe, response))
                compared += 1
            # Else there are two readings: the other side is not given a special token.
    assert compared > 10


@pytest.mark.parametrize("model", ["Llama 2", "Phi 3"])
def test_a_probe_is_judged_as_the_target_hears_it(tmp_path, model):
    """In a chat whose messages share tokens with what stands before them; the oracle is a plain forward."""
    kind, template = {"Llama 2": ("llama2", templates.LLAMA2), "Phi 3": ("phi3", templates.PHI3)}[model]
    folder = save_with(tmp_path / "model", TOKENIZERS[kind](), template)
    system = make(folder, folder, rollout=rollout(format="chat"))
    alone = AutoModelForCausalLM.from_pretrained(folder)
    with system.rolling_out(2):
        states = [system.start(prompt) for prompt in PROMPTS]
        for turn in range(2):
            probes = system.rollout_prompt_with_tester(states, seeds=[(row, turn) for row in range(len(states))])
            asked = [state + probe for state, probe in zip(states, probes, strict=True)]
            responses = system.rollout_prompt_with_target(asked, seeds=[(row, turn) for row in range(len(states))])
            found = system.probe_logprobs(states, probes)
            for state, probe, logprobs in zip(states, probes, found, strict=True):
                context = system.views.target.other_turn(state, len(probe.target_ids))
                torch.testing.assert_close(logprobs, plain(alone, context, probe.target_ids), **CLOSE)
            states = [system.advance(*turn) for turn in zip(states, probes, responses, strict=True)]


def no_end_in(folder: Path) -> Path:
    """A base model with a ChatML template: its end of text is not the end of a turn."""
    save_tiny(folder, "llama")
    fields = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "generation_config.json").write_text(json.dumps(fields | {"eos_token_id": 257}), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<pad>"
    tokenizer.save_pretrained(folder)
    return folder


def test_a_turn_ends_where_the_template_ends_it(tmp_path, caplog):
    """Every token is as likely as any, so that many would continue after <|im_end|> (id 259)."""
    folder = no_end_in(tmp_path / "base")
    with caplog.at_level(logging.WARNING, logger="astra_accel"):
        system = make(folder, folder, rollout=rollout(format="chat", tester={"max_new_tokens": 32}))
    assert [line for line in caplog.messages if "chat template" in line] == [
        f"The chat template of {folder} ends an answer with <|im_end|>, the model with <pad>: turns end with either."
    ]
    with torch.no_grad():
        system.roles.tester.model.model.norm.weight.zero_()
    probes = system.rollout_prompt_with_tester([system.start("Hi.")] * 64, seeds=seeds(64))
    assert {probe.end_id for probe in probes} >= {257, 259, None}
    assert not any(259 in probe.tester_ids for probe in probes)
    raw = make(folder, folder)
    assert raw.roles.tester.files.end_ids == {257}


def test_an_end_of_a_turn_that_no_token_is_is_told(tmp_path, caplog):
    folder = save_with(tmp_path / "model", TOKENIZERS["llama2"](), templates.PLAIN)
    with caplog.at_level(logging.WARNING, logger="astra_accel"):
        make(folder, folder, rollout=rollout(format="chat"))
    (line,) = [line for line in caplog.messages if "chat template" in line]
    assert line.startswith(f"The chat template of {folder} ends an answer with plain text, '\\n### Human: ', and with")


def test_thinking_is_kept_beside_what_is_said(tmp_path, monkeypatch):
    """What was sampled is trained on, what is said is judged, and the rollouts have both."""
    folder = save_with(tmp_path / "model", TOKENIZERS["llama3"](), templates.QWEN3)
    system = make(folder, folder, rollout=rollout(format="chat"))
    encode = system.views.tester.format.codec.encode_continued
    said = {"tester": "<think>\nHm.\n</think>\n\nWhy?", "target": "<think>\nA question.\n</think>\n\nSo."}

    def write(role, contexts, *_, **__):
        ids = encode(said["tester" if role is system.roles.tester else "target"])
        return [Generated(ids, (-1.0,) * len(ids)) for _ in contexts]

    monkeypatch.setattr(system, "_generate", write)
    scored = []
    monkeypatch.setattr(system.scorer, "score", lambda texts: scored.extend(texts) or [0.0] * len(texts))
    graph = ASTSampler(system, ["Hi"], tree_width=1, tree_depth=2).rollout(0)
    write_table(tmp_path / "rollouts.parquet", list(rollout_rows([graph])))
    first, second = pq.read_table(tmp_path / "rollouts.parquet").to_pylist()
    assert set(scored) == {"So.", "Why?\nSo."}
    assert (first["probe"], first["response"], second["context"]) == ("Why?", "So.", "Hi\nWhy?\nSo.")
    assert first["probe_thinking"] == "<think>\nHm.\n</think>"
    assert first["response_thinking"] == "<think>\nA question.\n</think>"
    probe = graph.children[0].probe
    assert probe.sampled_ids == encode(said["tester"])
    assert system.num_probe_tokens([probe]) == [len(probe.sampled_ids)]
    assert system.get_tester_logprobs([graph.context], [probe]).shape == (1, len(probe.sampled_ids))
    # Naturalness is of what is said, under whichever model.
    (natural,) = system.probe_logprobs([graph.context], [probe], "baseline")
    torch.testing.assert_close(
        natural, system.get_baseline_logprobs([graph.context], [probe])[0, -len(encode("Why?")) :]
    )
    cut_off = system.views.probe(encode("<think>\nHm."), frozenset(), None, graph.context)
    assert [len(row) for row in system.probe_logprobs([graph.context], [cut_off], "baseline")] == [0]
