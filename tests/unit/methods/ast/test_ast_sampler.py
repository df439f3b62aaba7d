"""The rollout trees: their shape, how contexts chain, and that an episode follows from its seed alone."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
import torch

from astra_accel.config import LoRAConfiguration, RolloutConfiguration, SamplingConfiguration
from astra_accel.core.sampler import Graph, Node, walk
from astra_accel.core.scorer import Scorer
from astra_accel.data import load_prompts
from astra_accel.methods.ast import ASTSampler, ASTSystem, HFASTSystem
from astra_accel.models.logprobs import pad_logprobs

PROMPTS = ["So I said", "Hm", "What do you think?", "First,"]
HELD_OUT = ["Yes, but", "Not at all:", "Why"]


class Checksum(Scorer):
    """Every letter of a text counts."""

    def score(self, texts):
        return [zlib.crc32(text.encode()) % 1000 / 1000 for text in texts]


def make_system(**options: object) -> HFASTSystem:
    sampling = SamplingConfiguration(top_k=8, max_new_tokens=5)
    rollout = RolloutConfiguration(**({"tester": sampling, "target": sampling} | options))
    return HFASTSystem("tiny", "tiny", scorer=Checksum(), lora=LoRAConfiguration(r=4, alpha=8), rollout=rollout)


@pytest.fixture(scope="module")
def sampler() -> ASTSampler:
    return ASTSampler(make_system(), PROMPTS, tree_width=2, tree_depth=3, eval_prompts=HELD_OUT)


class Drawing(ASTSystem[str, str]):
    """A system of strings as the reference has them: no seeds, letters from all three global generators."""

    def rollout_prompt_with_tester(self, prompt):
        return [f"<{random.randrange(1000)}>" for _ in prompt]

    def rollout_prompt_with_target(self, prompt):
        return [f"({np.random.randint(1000)},{int(torch.randint(1000, ()))})" for _ in prompt]

    def get_target_logprobs(self, context, continuation):
        return pad_logprobs([torch.full((len(text),), -1.0) for text in continuation])

    get_tester_logprobs = get_baseline_logprobs = get_target_logprobs

    def parameters(self):
        return iter(())


def drawing_sampler(**options: int) -> ASTSampler:
    return ASTSampler(Drawing(Checksum()), PROMPTS, eval_prompts=HELD_OUT, **options)


BOTH = pytest.mark.parametrize(
    "make", [lambda sampler: sampler, lambda sampler: drawing_sampler()], ids=["hf", "strings"]
)


def global_states() -> tuple[object, list[int], list[int]]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


# --- The tree -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (1, 4), (3, 1), (2, 3), (3, 2)])
def test_the_shape(width, depth):
    for sampler in (
        ASTSampler(make_system(), PROMPTS, width, depth),
        drawing_sampler(tree_width=width, tree_depth=depth),
    ):
        paths = [path for path, _ in walk(sampler.rollout(0))]
        assert len(paths) == len(set(paths)) == sum(width**level for level in range(1, depth + 1))
        assert max(map(len, paths)) == depth
        assert all(child < width for path in paths for child in path)


@BOTH
def test_contexts_chain(sampler, make):
    """A child's context is its parent's with one more turn; siblings have one context."""
    sampler = make(sampler)
    graph = sampler.rollout(3)

    def check(context, nodes):
        for node in nodes:
            assert node.context == context
            check(context + node.probe + node.response, node.children)

    check(graph.context, graph.children)
    assert str(graph.context) in PROMPTS
    deepest = graph.children[0].children[1].children[0]
    assert str(deepest.context).startswith(str(graph.context))


def test_nodes_hold_what_the_system_says_of_them(sampler):
    for graph in sampler.rollout_many([1, 2]):
        for _, node in walk(graph):
            (parts,) = sampler.system.reward_parts([node.context], [node.probe], [node.response])
            assert {name: node.info[name] for name in parts} == pytest.approx(parts, abs=1e-5)
            assert node.reward == node.info["reward"]
            assert node.info["probe_tokens"] == len(node.probe.sampled_ids)
            assert node.info["response_tokens"] == len(node.response.sampled_ids)


def test_siblings_and_levels_draw_apart(sampler):
    """The random numbers of a node are its own: the greedy choice aside, no two probes are alike."""
    probes = [node.probe.sampled_ids for graph in sampler.rollout_many(range(4)) for _, node in walk(graph)]
    assert len(set(probes)) > 0.9 * len(probes)
    # Sampled with one number sequence, the children of one node would all be the same.
    graph = sampler.rollout(0)
    assert graph.children[0].probe != graph.children[1].probe


def test_a_system_without_parts_of_its_reward():
    """A system by shape alone, as the reference's."""

    class Plain:
        def rollout_prompt_with_tester(self, prompt):
            return ["p"] * len(prompt)

        def rollout_prompt_with_target(self, prompt):
            return ["r"] * len(prompt)

        def advance(self, context, probe, response):
            return f"{context}|{probe}{response}"

        def reward(self, context, probe, response):
            return torch.arange(len(context)) / 2

    graph = ASTSampler(Plain(), ["a"], tree_width=2, tree_depth=2).rollout(0)
    (first, second) = graph.children
    assert (first.context, first.probe, first.response) == ("a", "p", "r")
    assert [first.reward, second.reward] == [0.0, 0.5]
    assert isinstance(first.reward, float)
    assert [node.reward for node in (*first.children, *second.children)] == [0.0, 0.5, 1.0, 1.5]
    assert second.children[0].context == "a|pr"


# --- Seeds --------------------------------------------------------------------------------------------------


@BOTH
def test_a_seed_gives_one_graph(sampler, make):
    sampler = make(sampler)
    first = sampler.rollout(5)
    torch.manual_seed(99)
    random.seed(99)
    assert sampler.rollout(5) == first
    assert sampler.rollout(6) != first
    assert first.seed == 5


@BOTH
def test_zero_is_a_seed(sampler, make):
    sampler = make(sampler)
    assert sampler.rollout(0) == sampler.rollout(0)
    assert sampler.rollout(0) != sampler.rollout(1)
    assert sampler.eval_rollout(0) == sampler.eval_rollout(0)


def assert_alike(found: list[Graph], expected: list[Graph]) -> None:
    """The same trees, where the padding of a batch may change the last digits of a reward."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.context == other.context
        nodes, expected_nodes = list(walk(one)), list(walk(other))
        said, expected_said = (
            [(path, node.context, node.probe, node.response) for path, node in each] for each in (nodes, expected_nodes)
        )
        assert said == expected_said
        for (_, node), (_, expected_node) in zip(nodes, expected_nodes, strict=True):
            assert node.info == pytest.approx(expected_node.info, abs=1e-5)
            assert node.reward == pytest.approx(expected_node.reward, abs=1e-5)


@BOTH
def test_an_episode_is_the_same_whatever_it_is_rolled_out_beside(sampler, make):
    sampler = make(sampler)
    together = sampler.rollout_many([4, 0, 7, 4])
    assert_alike(together, [sampler.rollout(seed) for seed in (4, 0, 7, 4)])
    assert_alike(sampler.rollout_many([7, 4]), [together[2], together[0]])
    evaluated = sampler.eval_rollout_many([1, "Hello there", 0])
    assert_alike(evaluated, [sampler.eval_rollout(seed) for seed in (1, "Hello there", 0)])
    assert sampler.rollout_many([]) == []


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_the_rows_of_a_batch_do_not_matter(sampler, batch_rows):
    small = ASTSampler(make_system(batch_rows=batch_rows), PROMPTS, tree_width=2, tree_depth=3)
    assert_alike(small.rollout_many([3, 8]), sampler.rollout_many([3, 8]))


def test_a_wider_tree_holds_the_narrower(sampler):
    """Random numbers come from the path, not from the order of drawing."""
    wide = ASTSampler(sampler.system, PROMPTS, tree_width=3, tree_depth=2)
    narrow = {path: node.probe for path, node in walk(sampler.rollout(2)) if len(path) < 3}
    found = {path: node.probe for path, node in walk(wide.rollout(2)) if max(path) < 2}
    assert found == narrow


@BOTH
def test_none_draws_a_seed(sampler, make):
    sampler = make(sampler)
    torch.manual_seed(1)
    first, second = sampler.rollout(), sampler.rollout()
    evaluated = sampler.eval_rollout()
    torch.manual_seed(1)
    assert [sampler.rollout(), sampler.rollout(), sampler.eval_rollout()] == [first, second, evaluated]
    assert first != second


@BOTH
def test_the_global_generators_are_left_as_they_were(sampler, make):
    sampler = make(sampler)
    before = global_states()
    sampler.rollout(1)
    sampler.rollout_many([2, 3])
    sampler.eval_rollout("a")
    assert global_states() == before


def test_seeds_choose_among_all_prompts(sampler):
    chosen = [str(graph.context) for graph in drawing_sampler(tree_depth=1).rollout_many(range(100))]
    assert {prompt: chosen.count(prompt) > 10 for prompt in PROMPTS} == dict.fromkeys(PROMPTS, True)


# --- Evaluation ---------------------------------------------------------------------------------------------


@BOTH
def test_an_evaluation_is_one_conversation(sampler, make):
    sampler = make(sampler)
    graph = sampler.eval_rollout(1)
    assert [path for path, _ in walk(graph)] == [(0,), (0, 0), (0, 0, 0)]
    (first,) = graph.children
    (second,) = first.children
    assert first.context == graph.context
    assert second.context == first.context + first.probe + first.response


def test_an_evaluation_is_of_a_held_out_prompt_by_number(sampler):
    graphs = sampler.eval_rollout_many(range(5))
    assert [str(graph.context) for graph in graphs] == [*HELD_OUT, *HELD_OUT[:2]]
    # The same prompt again is another conversation.
    assert graphs[0] != graphs[3]


def test_an_evaluation_is_of_any_text(sampler):
    graph = sampler.eval_rollout("Something else")
    assert str(graph.context) == "Something else"
    assert graph == sampler.eval_rollout("Something else")
    assert graph.context == sampler.system.start("Something else")


@pytest.mark.parametrize("width", [1, 2])
@BOTH
def test_the_first_try_is_the_same_however_many_follow(sampler, make, width):
    """Three tries give three times as many children of the root, and the first of them are those of a single try."""
    system = make(sampler).system
    one, three = (
        ASTSampler(system, PROMPTS, tree_depth=2, eval_prompts=HELD_OUT, eval_width=width, eval_tries=tries)
        for tries in (1, 3)
    )
    alone, together = one.eval_rollout_many([0, 1]), three.eval_rollout_many([0, 1])
    first = [Graph(graph.context, graph.children[:width], graph.seed) for graph in together]
    assert_alike(first, alone)
    for graph in together:
        assert [path for path, _ in walk(graph)] == [
            *((child,) for child in range(3 * width)),
            *((child, grandchild) for child in range(3 * width) for grandchild in range(width)),
        ]
        assert len({str(child.probe) for child in graph.children}) == 3 * width


def test_tries_are_for_evaluations_alone(sampler):
    tried = ASTSampler(sampler.system, PROMPTS, tree_width=2, tree_depth=1, eval_tries=3)
    assert len(tried.rollout(0).children) == 2
    with pytest.raises(ValueError, match="eval_tries is 0, expected at least 1"):
        ASTSampler(sampler.system, PROMPTS, eval_tries=0)


def test_evaluations_and_training_draw_apart(sampler):
    one = ASTSampler(sampler.system, ["Yes, but"], tree_width=1, tree_depth=1)
    for seed in range(5):
        training, evaluation = one.rollout(seed), one.eval_rollout(seed)
        assert training.context == evaluation.context
        assert training.children[0].probe != evaluation.children[0].probe


def test_training_prompts_serve_where_none_are_held_out():
    sampler = ASTSampler(Drawing(Checksum()), PROMPTS)
    assert [graph.context for graph in sampler.eval_rollout_many([1, 4])] == [PROMPTS[1], PROMPTS[0]]


def test_evaluating_on_training_prompts_is_told_once(caplog):
    for seed in ("a text", 0, 1):
        drawing_sampler(tree_depth=1).eval_rollout(seed)
    sampler = ASTSampler(Drawing(Checksum()), PROMPTS, tree_depth=1)
    sampler.eval_rollout("a text")
    assert caplog.messages == []
    sampler.eval_rollout(0)
    sampler.eval_rollout(1)
    assert caplog.messages == [
        "No held-out prompts were given (eval_prompts): evaluating on prompts that are trained on."
    ]


def test_an_evaluation_may_have_trees_that_hold_the_conversations_without_branches():
    chain = drawing_sampler(tree_depth=2).eval_rollout("A text")
    tree = drawing_sampler(tree_depth=2, eval_width=3).eval_rollout("A text")
    assert len([node for _, node in walk(tree)]) == 3 + 9
    wide = ASTSampler(make_system(), PROMPTS, tree_depth=2, eval_width=2).eval_rollout("A text")
    narrow = ASTSampler(make_system(), PROMPTS, tree_depth=2).eval_rollout("A text")
    assert wide.children[0].probe == narrow.children[0].probe
    assert wide.children[0].children[0].response == narrow.children[0].children[0].response
    assert wide.children[0].probe != wide.children[1].probe
    assert len(chain.children) == 1


# --- What it is made of -------------------------------------------------------------------------------------


def test_the_bundled_prompts_are_the_default():
    sampler = ASTSampler(Drawing(Checksum()))
    assert sampler.prompts == load_prompts()
    assert sampler.eval_prompts == load_prompts(split="dev")
    assert ASTSampler(Drawing(Checksum()), eval_prompts=["x"]).eval_prompts == ["x"]
    assert (sampler.tree_width, sampler.tree_depth) == (2, 3)


@pytest.mark.parametrize("make", [drawing_sampler, lambda **shape: ASTSampler(make_system(), PROMPTS, **shape)])
def test_an_evaluation_may_be_deeper_than_training_and_begins_alike(make):
    deep, shallow = make(tree_depth=1, eval_depth=3), make(tree_depth=1)

    def turns(graph):
        return [(node.probe, node.response) for _, node in walk(graph)]

    assert len(turns(deep.eval_rollout("A text"))) == 3
    assert turns(deep.eval_rollout("A text"))[:1] == turns(shallow.eval_rollout("A text"))
    assert max(len(path) for path, _ in walk(deep.rollout(0))) == 1


@pytest.mark.parametrize("name", ["tree_width", "tree_depth", "eval_width", "eval_depth"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_tree_has_a_size(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected at least 1"):
        drawing_sampler(**{name: value})


@pytest.mark.parametrize("prompts", [([], ["a"]), (["a"], [])])
def test_no_prompts(prompts):
    for system in (Drawing(Checksum()), make_system()):
        with pytest.raises(ValueError, match="prompts: there are none; expected at least one"):
            ASTSampler(system, prompts[0], eval_prompts=prompts[1])


def test_the_system_checks_the_prompts(sampler):
    for prompts in ((["a", " "], ["a"]), (["a"], ["b", " "])):
        with pytest.raises(ValueError, match="prompts, row 2: found ' ', expected a text that is not blank"):
            ASTSampler(sampler.system, prompts[0], eval_prompts=prompts[1])


def test_nodes_are_nodes(sampler):
    graph = sampler.rollout(0)
    assert isinstance(graph, Graph)
    assert all(isinstance(node, Node) for _, node in walk(graph))


def test_episodes_of_one_prompt_differ_in_what_is_drawn(sampler):
    one, other, third = sampler.rollout_many([3, 4, 5], prompt_seeds=[3, 3, 5])
    assert_alike([one], [sampler.rollout(3)])
    assert one.context == other.context != third.context
    assert [node.probe for node in one.children] != [node.probe for node in other.children]
    assert (one.seed, other.seed) == (3, 4)
