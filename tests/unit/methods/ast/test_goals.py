"""What tester and target read of a conversation with a goal.

The oracles are the tokenizer's own ``apply_chat_template``, and views whose instruction is the text that the goal was
filled into by hand.
"""

from __future__ import annotations

import json

import pytest

from astra_accel.config import RolloutConfiguration
from astra_accel.core.prompt import Goal, Prompt
from astra_accel.core.sampler import walk
from astra_accel.experience.codec import Codec
from astra_accel.methods.ast.hf_system import HFASTSystem
from astra_accel.methods.ast.sampler import ASTSampler
from astra_accel.methods.ast.transcript import joined_text
from astra_accel.methods.ast.views import check_prompts
from astra_accel.models.loading.tiny import build_tiny
from tests.helpers.views import views_of

TOKENIZERS = {architecture: build_tiny(architecture)[1] for architecture in ("llama", "qwen2")}
INSTRUCTION = "Bring out: {goal} ({category}){context} {other}"
GOALS = {
    "whole": (Goal("Forge a ticket", "Fraud", "A concert."), "Bring out: Forge a ticket (Fraud)A concert. {other}"),
    "bare": (Goal("Say {context}"), "Bring out: Say {context} () {other}"),
}
ROOM = 8


def said(views, prompt: Prompt | str, *turns: tuple[str, str]):
    """A conversation of texts, which no model sampled."""
    state = views.prompt(prompt)
    for probe, response in turns:
        state += views.segment("probe", probe, state)
        state += views.segment("response", response, state)
    return state


@pytest.mark.parametrize("architecture", TOKENIZERS)
@pytest.mark.parametrize("kind", GOALS)
@pytest.mark.parametrize("opening", ["Hello there.", ""])
def test_the_testers_instruction_tells_the_goal(architecture, kind, opening):
    tokenizer, (goal, told) = TOKENIZERS[architecture], GOALS[kind]
    views = views_of(tokenizer, format="chat", tester_instruction=INSTRUCTION)
    by_hand = views_of(tokenizer, format="chat", tester_instruction=told)
    state = said(views, Prompt(goal, opening), ("Why?", "Because."))
    read = views.tester.own_turn(state, ROOM)
    assert read == by_hand.tester.own_turn(said(by_hand, opening, ("Why?", "Because.")), ROOM)
    messages = [
        {"role": "system", "content": told},
        {"role": "user", "content": opening},
        {"role": "assistant", "content": "Why?"},
        {"role": "user", "content": "Because."},
    ]
    assert list(read) == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("architecture", TOKENIZERS)
@pytest.mark.parametrize(("opening", "first"), [("Hello there.", "Hello there.\nWhy?"), ("", "Why?")])
def test_the_target_is_not_told(architecture, opening, first):
    tokenizer = TOKENIZERS[architecture]
    views = views_of(tokenizer, format="chat", tester_instruction=INSTRUCTION, target_instruction="Be {goal}.")
    state = said(views, Prompt(GOALS["whole"][0], opening), ("Why?", "Because."))
    state += views.segment("probe", "And then?", state)
    messages = [
        {"role": "system", "content": "Be {goal}."},
        {"role": "user", "content": first},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "And then?"},
    ]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(views.target.own_turn(state, ROOM)) == expected
    assert str(state) == "\n".join([first, "Because.", "And then?"])
    assert joined_text(state.segments[:2], "\n") == first


def test_raw_needs_an_opening():
    views, rollout = views_of(TOKENIZERS["llama"]), RolloutConfiguration()
    check_prompts([Prompt(GOALS["whole"][0], "Hello.")], views, rollout)
    with pytest.raises(ValueError, match="prompts, row 1: the goal 'Forge a ticket' has no opening"):
        check_prompts([Prompt(GOALS["whole"][0])], views, rollout)


def test_an_instruction_that_tells_goals_needs_them():
    rollout = RolloutConfiguration(format="chat", tester_instruction=INSTRUCTION)
    views = views_of(TOKENIZERS["llama"], format="chat", tester_instruction=INSTRUCTION)
    with pytest.raises(ValueError, match="prompts, row 2 has no goal, but rollout"):
        check_prompts([Prompt(GOALS["whole"][0]), "Hello."], views, rollout)


def test_a_goal_that_is_too_long_names_its_row():
    rollout = RolloutConfiguration(format="chat", tester_instruction=INSTRUCTION, context_limit=200)
    views = views_of(TOKENIZERS["llama"], format="chat", tester_instruction=INSTRUCTION, context_limit=200)
    with pytest.raises(ValueError, match="prompts, row 2"):
        check_prompts([Prompt(Goal("Forge")), Prompt(Goal("Forge " * 50))], views, rollout)


def system(**rollout) -> HFASTSystem:
    config = RolloutConfiguration(format="chat", tester={"max_new_tokens": 4}, target={"max_new_tokens": 4}, **rollout)
    return HFASTSystem("tiny", "tiny", lora=None, rollout=config)


def test_rollouts_know_their_goals():
    """What the tester writes follows from the goal, as from an instruction that tells it; and each row has the goal."""
    goal, told = GOALS["whole"]
    prompts = [Prompt(goal, "Hello."), Prompt(Goal("Pick a lock"), "Hello.")]
    sampler = ASTSampler(system(tester_instruction=INSTRUCTION), prompts, tree_depth=2, eval_prompts=prompts)
    by_hand = ASTSampler(system(tester_instruction=told), ["Hello."], tree_depth=2)
    with_goal, other = sampler.eval_rollout_many([0, 1])
    (alike,) = by_hand.eval_rollout_many([0])
    probes = [[node.probe.sampled_ids for _, node in walk(graph)] for graph in (with_goal, alike, other)]
    assert probes[0] == probes[1]
    assert probes[0] != probes[2]
    for graph, columns in ((with_goal, goal.columns()), (other, {"goal": "Pick a lock"})):
        for _, node in walk(graph):
            assert {name: node.info.get(name) for name in columns} == columns
            assert node.context.goal == Goal.from_row(columns)
    assert "category" not in next(walk(other))[1].info


def test_the_log_probs_of_probes_are_those_of_the_filled_instruction():
    goal, told = GOALS["whole"]
    ours, by_hand = system(tester_instruction=INSTRUCTION), system(tester_instruction=told)
    found = ours.get_tester_logprobs([ours.start(Prompt(goal, "Hello."))], ["Why?"])
    assert found.tolist() == by_hand.get_tester_logprobs([by_hand.start("Hello.")], ["Why?"]).tolist()
    other = ours.get_tester_logprobs([ours.start(Prompt(Goal("Pick a lock"), "Hello."))], ["Why?"])
    assert found.tolist() != other.tolist()


def test_equal_openings_with_other_goals_are_other_seeds():
    prompts = [Prompt(Goal("Forge a ticket"), "Hello."), Prompt(Goal("Pick a lock"), "Hello."), "Hello."]
    sampler = ASTSampler(system(), prompts[:2], eval_prompts=prompts[:2])
    graphs = sampler.eval_rollout_many(prompts)
    assert len({graph.seed for graph in graphs}) == 3
    assert sampler.eval_rollout(prompts[1]).seed == graphs[1].seed


def test_a_system_that_knows_no_goals_begins_with_openings_and_rows_have_the_goals():
    class Plain:
        def rollout_prompt_with_tester(self, prompt):
            return [f" and {len(state)}" for state in prompt]

        def rollout_prompt_with_target(self, prompt):
            return [f" so {len(state)}" for state in prompt]

        def advance(self, context, probe, response):
            return context + probe + response

        def reward(self, context, probe, response):
            return [float(len(text)) for text in response]

    sampler = ASTSampler(Plain(), [Prompt(Goal("Pick a lock"), "Hello.")], tree_width=1, tree_depth=1)
    ((_, node),) = walk(sampler.rollout(0))
    assert (node.context, node.probe, node.response, node.info["goal"]) == ("Hello.", " and 6", " so 12", "Pick a lock")


def test_a_checkpoint_keeps_the_goals_of_replayed_conversations():
    """As JSON and back; a conversation that was written before there were goals has none."""
    codec = Codec(HFASTSystem.state_types)
    state = views_of(TOKENIZERS["llama"], format="chat").prompt(Prompt(GOALS["whole"][0], "Hello."))
    written = json.loads(json.dumps(codec.encode(state)))
    assert codec.decode(written) == state
    del written["fields"]["goal"]
    assert codec.decode(written).goal is None
