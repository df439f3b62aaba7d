"""The benchmarks: what they count and compare, and that each runs on a tiny model and writes its result."""

from __future__ import annotations

import argparse
import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from astra_accel.algorithms.dpo import DPOStep
from astra_accel.config import RunConfiguration
from astra_accel.core.sampler import walk
from astra_accel.methods.ast import HFASTSystem
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny
from astra_accel.models.logprobs import sequence_logprobs
from tests.helpers.benchmarks import SCRIPTS, script, scripts  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("scripts")
SMALL = ["--model", "tiny", "--episodes", "2", "--tokens", "4"]
TREES = ["--width", "2", "--depth", "2"]


def options(*more: str, **numbers: int) -> argparse.Namespace:
    return script("common").parse(None, [*SMALL, *more], width=2, depth=2, **numbers)


def tiny_system() -> HFASTSystem:
    """A system whose adapter does something, so that tester and baseline differ."""
    system = script("common").build_system(options())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return system


RUNS = {
    "rollout": ([*TREES, "--buffer-mib", "8"], "reference / ours", ("reference", "ours")),
    "update": (
        [*TREES, "--as-published"],
        "reference as published / ours",
        ("reference as published", "ours"),
    ),
    "decode": (
        [],
        "transformers generate / ours, base",
        ("transformers generate, base", "ours, base"),
    ),
    "grpo_vs_trl": (
        ["--width", "2", "--batch", "4", "--steps", "2", "--dtypes", "float32", "bfloat16"],
        "TRL / ours, bfloat16",
        ("TRL step, bfloat16", "our step, bfloat16"),
    ),
    "weak_scaling": ([*TREES, "--batch", "4", "--steps", "2"], "2 processes / 1", ("2 processes", "1 process")),
    "overhead": ([*TREES, "--batch", "4", "--steps", "2"], "trainer / bare loop", ("trainer", "bare loop")),
    "memory": ([*TREES, "--batch", "4", "--steps", "1"], "reference / ours", ("reference", "ours")),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("memory", "weak_scaling", "overhead") else [])
        for name in RUNS
    ],
)
def test_a_benchmark_prints_and_writes_its_result(name, tmp_path, capfd):
    arguments, ratio, (above, below) = RUNS[name]
    script(name).main([*SMALL, *arguments, "--repeats", "2", "--target", "3.5", "--results", str(tmp_path)])
    printed, progress = capfd.readouterr()
    result = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))

    assert result["benchmark"] == name
    assert result["options"]["model"] == "tiny"
    assert result["options"]["prompts"] == "bundled"
    assert result["target"] == 3.5
    assert all(result["machine"][field] for field in ("processor", "accelerator", "cores", "threads", "memory_gb"))
    packages = {"python", "torch", "transformers", "peft", "accelerate"}
    assert set(result["versions"]) == packages | ({"trl"} if name == "grpo_vs_trl" else set())
    assert {len(values) for values in result["repeats"].values()} == {2}
    for side, (one, other) in result["repeats"].items():
        assert result["medians"][side] == pytest.approx((one + other) / 2)
    assert result["ratios"][ratio] == pytest.approx(result["medians"][above] / result["medians"][below])
    assert all(value > 0 for value in result["ratios"].values())

    lines = printed.splitlines()
    lines = lines[lines.index(name) :]  # after what a library that is imported has to say
    assert (lines[0], lines[-1]) == (name, f"written to {tmp_path / name}.json")
    first = next(iter(result["ratios"]))
    assert f"  {first} = {result['ratios'][first]:.4g} (target 3.5)" in lines
    assert f"2/2 {above}: " in progress


def test_scaling_sets_time_beside_distinct_tokens(tmp_path, capfd):
    arguments = [*SMALL, *TREES, "--prompt-tokens", "8", "--repeats", "1", "--results", str(tmp_path)]
    script("scaling").main(arguments)
    result = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))
    for what in ("rollout", "update"):
        for grows in ("episodes 1 -> 2", "depth 1 -> 2", "prompt tokens 16 -> 32"):
            assert result["ratios"][f"{what}, {grows}: distinct tokens doubled, time x"] > 0
    # Two probes of a context or four: its best and its worst are two.
    assert "update, width 2 -> 4" in result["figures"]
    assert "update, width 2 -> 4: distinct tokens doubled, time x" not in result["ratios"]
    assert "written to" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("tokens", "time", "doubling"), [(2, 2, 2), (4, 4, 2), (4, 2, math.sqrt(2)), (2, 4, 4), (3, 1, 1)]
)
def test_the_time_of_doubled_tokens(tokens, time, doubling):
    assert script("scaling").of_doubling(tokens, time) == pytest.approx(doubling)


def test_each_setting_grows_in_one_thing():
    tokenizer = build_tiny("llama")[1]
    chosen = script("common").parse(None, ["--episodes", "8"], width=2, depth=3, prompt_tokens=10)
    prompts = [f"prompt number {number}, of some length" for number in range(8)]
    found = script("scaling").settings(chosen, prompts, tokenizer)
    shapes = {
        axis: {size: (len(setting.prompts), setting.width, setting.depth) for size, setting in points.items()}
        for axis, points in found.items()
    }
    assert shapes == {
        "episodes": {2: (2, 2, 2), 4: (4, 2, 2), 8: (8, 2, 2)},
        "width": {2: (8, 2, 2), 4: (8, 4, 2)},
        "depth": {2: (8, 2, 2), 3: (8, 2, 3)},
        "prompt tokens": {10: (8, 2, 2), 20: (8, 2, 2), 40: (8, 2, 2)},
    }
    # The tiny tokenizer's tokens are bytes.
    for size, setting in found["prompt tokens"].items():
        assert {len(prompt) for prompt in setting.prompts} == {size}


def test_sides_take_turns():
    calls = []
    sides = {"A": lambda: calls.append("A") or 1.0, "B": lambda: calls.append("B") or 2.0}
    measured = script("common").interleaved(sides, 3)
    assert "".join(calls) == "ABABAB"
    assert measured == {"A": [1.0] * 3, "B": [2.0] * 3}


def test_prompts_come_from_a_file_and_its_path_is_not_written(tmp_path, capsys):
    common = script("common")
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{"text": "first"}, {"text": "second"}, {"text": "third"}]), encoding="utf-8")
    chosen = options("--prompts", str(file), "--results", str(tmp_path))
    assert common.first_prompts(chosen) == ["first", "second"]
    common.report("name", chosen, {"A": [1.0]}, {})
    written = (tmp_path / "name.json").read_text(encoding="utf-8")
    assert "mine.json" in written
    assert str(tmp_path) not in written
    chosen.episodes = 4
    with pytest.raises(ValueError, match=r"--episodes is 4, but .* has 3 prompts"):
        common.first_prompts(chosen)


def test_every_prompt_is_rolled_out_once():
    prompts = [f"opening {number}" for number in range(5)]
    sampler, seeds = script("common").every_prompt_once(tiny_system(), prompts, width=1, depth=1)
    assert [str(graph.context) for graph in sampler.rollout_many(seeds)] == prompts


def test_the_work_of_a_tree_by_hand():
    """Two turns of two rows. The first row's probe 4 5 6 was cut, the second's 7 8 ended with 8, which nobody reads.

    ============  =========================  ============================
    turn 1        read 1 2 3                 3 tokens at once
    step 1        feed 4 and 7               2 rows over 1 2 3, 4, 7
    step 2        feed 5                     1 row over 1 2 3 4 5
    turn 2        read 6 10 11, and 12       4 tokens at once
    step 1        feed 13                    1 row over 9 tokens
    ============  =========================  ============================
    """
    limit = script("limit")
    first = limit.Call([(1, 2, 3), (1, 2, 3)], [(4, 5, 6), (7, 8)])
    second = limit.Call([(1, 2, 3, 4, 5, 6, 10, 11), (1, 2, 3, 7, 12)], [(13, 14), (15,)])
    work = limit.count_work([first, second])
    assert work.num_prefill == 3 + 4
    assert work.steps == [(2, 5), (1, 5), (1, 9)]
    assert work.num_tokens == 7 + 4

    size = limit.Size(num_parameters=10, weight_bytes=100, kv_bytes=2)
    rates = limit.Rates(flops_per_second=2.5, bytes_per_second=10)
    # 2 * 10 FLOPs a token; a step reads 100 bytes and 2 for each token it looks back at.
    assert limit.bandwidth_limit(work, size, rates) == pytest.approx(7 * 20 / 2.5 + (110 + 110 + 118) / 10)
    # The first step's two rows take 16 s of arithmetic and 11 s of reading; the others' one row takes 8 s.
    assert limit.roofline_limit(work, size, rates) == pytest.approx(7 * 20 / 2.5 + 16 + 11 + 11.8)
    assert limit.update_limit(7, size, rates, full=False) == pytest.approx(4 * 10 * 7 / 2.5)
    assert limit.update_limit(7, size, rates, full=True) == pytest.approx(6 * 10 * 7 / 2.5)


def test_rows_that_are_the_same_so_far_are_one():
    limit = script("limit")
    work = limit.count_work([limit.Call([(1,), (1,), (1,)], [(2, 3, 4), (2, 3, 5), (2, 3)])])
    assert (work.num_prefill, work.steps) == (1, [(1, 2), (1, 3)])


def test_calls_are_the_turns_of_all_trees():
    limit, system = script("limit"), tiny_system()
    sampler, seeds = script("common").every_prompt_once(system, ["one", "another"], width=2, depth=2)
    graphs = sampler.rollout_many(seeds)
    calls = limit.rollout_calls(system, graphs)
    assert [(role, [len(call.contexts) for call in calls[role]]) for role in calls] == [
        ("tester", [4, 8]),
        ("target", [4, 8]),
    ]
    head = (system.roles.tester.files.tokenizer.bos_token_id,)
    nodes = [[node for graph in graphs for path, node in walk(graph) if len(path) == level] for level in (1, 2)]
    for level, tester, target in zip(nodes, calls["tester"], calls["target"], strict=True):
        for row, node in enumerate(level):
            # Raw format: the beginning-of-text token, then all that was said end to end.
            before = sum((segment.tester_ids for segment in node.context.segments), head)
            assert tester.contexts[row] == before
            assert target.contexts[row] == before + node.probe.target_ids
            assert len(tester.sampled[row]) == node.info["probe_tokens"]
            assert len(target.sampled[row]) == node.info["response_tokens"]


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_the_size_of_a_model_leaves_its_adapter_out(architecture):
    model, _ = build_tiny(architecture)
    cache = model(input_ids=torch.zeros(1, 5, dtype=torch.long), use_cache=True).past_key_values
    kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    adapted = script("common").build_system(options("--model", f"tiny:{architecture}")).roles.tester.model
    size = script("limit").Size.from_model(adapted)
    assert size.num_parameters == model.num_parameters() < adapted.num_parameters()
    assert size.weight_bytes == 4 * model.num_parameters()
    assert size.kv_bytes * 5 == kv_bytes


def test_matrix_products_are_those_of_every_layer():
    system = tiny_system()
    work, num_flops = script("limit").matrix_products(system.roles.tester.model)
    # Tiny Llama: queries and output 48 x 48, keys and values 48 x 16, three 48 x 96, twice; the head.
    weights = 2 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 96) + 48 * system.roles.tester.model.config.vocab_size
    with FlopCounterMode(display=False) as counter:
        work()
    assert num_flops == counter.get_total_flops() == 2 * 1024 * weights


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_plain_logprobs_are_those_of_the_library(architecture):
    model, _ = build_tiny(architecture)
    contexts, continuations = [[5, 9, 200], [7], list(range(40))], [[3, 8], [1, 2, 3, 4], [250]]
    found = [script("plain").logprobs(model, *pair) for pair in zip(contexts, continuations, strict=True)]
    expected = sequence_logprobs(model, contexts, continuations, packing="none")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_a_plain_rollout_is_a_whole_tree_with_the_librarys_rewards():
    system = tiny_system()
    graph = script("plain").rollout(system, "Have you heard", width=2, depth=2)
    nodes = [node for _, node in walk(graph)]
    assert [path for path, _ in walk(graph)] == [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
    for node in nodes:
        assert {child.context for child in node.children} <= {node.context + node.probe + node.response}
    columns = zip(*((node.context, node.probe, node.response) for node in nodes), strict=True)
    assert [node.reward for node in nodes] == pytest.approx(system.reward(*columns), abs=1e-4)


@pytest.mark.parametrize("recalled", [True, False])
def test_both_updates_have_the_same_gradient(recalled):
    update, common, system = script("update"), script("common"), tiny_system()
    sampler, seeds = common.every_prompt_once(system, ["What a day", "I never"], width=2, depth=2)
    ours = update.Update(system, sampler.rollout_many(seeds))
    assert len(ours.steps) == 2 * (1 + 2)  # every context gives a pair
    if not recalled:
        system.roles.baseline.recall = None

    def gradient(backward) -> torch.Tensor:
        backward()
        found = torch.cat([parameter.grad.flatten() for parameter in system.parameters()])
        system.tester.zero_grad()
        return found

    expected = gradient(
        lambda: update.plain_backward(script("plain").shared_policies(system), update.plain_pairs(system, ours.steps))
    )
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(gradient(ours.backward), expected, rtol=1e-3, atol=1e-4)
    before = [parameter.detach().clone() for parameter in system.parameters()]
    ours()
    assert any(not torch.equal(*pair) for pair in zip(before, system.parameters(), strict=True))


def test_the_published_reference_has_the_same_loss_and_keeps_both_graphs():
    """Two copies of a model that has had no adapter yet are tester and baseline of a system that begins with it."""
    plain, system = script("plain"), script("common").build_system(options())
    copies = [system.roles.tester.files.load(torch.float32) for _ in range(2)]
    pairs = [plain.Pair((1, 2, 3), (4, 5), (4, 6)), plain.Pair((1, 2, 3, 9), (7,), (8,))]
    loss = plain.dpo_loss(plain.policies_as_published(*copies), pairs)
    torch.testing.assert_close(loss, plain.dpo_loss(plain.shared_policies(system), pairs))
    loss.backward()
    tester, baseline = (torch.cat([weight.grad.flatten() for weight in model.parameters()]) for model in copies)
    assert tester.abs().max() > 1e-4
    torch.testing.assert_close(baseline, -tester)  # equal weights, and a margin is a difference


def test_distinct_tokens_of_pairs_by_hand():
    """1 2 3, then 4 under it once for two probes, and 9: the last token of each probe is only predicted."""
    plain, update = script("plain"), script("update")
    pairs = [plain.Pair((1, 2, 3), (4, 5), (4, 6)), plain.Pair((1, 2, 3, 9), (7,), (8,))]
    assert update.num_distinct(pairs) == 5


def test_plain_pairs_are_the_tokens_that_were_sampled():
    system = tiny_system()
    context = system.start("So")
    probes = [system.views.probe(ids, system.roles.tester.files.end_ids) for ids in ((70, 71), (72,))]
    (pair,) = script("update").plain_pairs(system, [DPOStep(context, *probes)])
    assert pair == (tuple(system.roles.tester.files.tokenizer("So").input_ids), (70, 71), (72,))


def test_the_plain_trainer_trains(capfd):
    script("plain").main([*SMALL, *TREES, "--batch", "4", "--steps", "1"])
    assert capfd.readouterr().out == ""


def test_memory_of_a_process_is_its_own(tmp_path):
    idle, busy, broken = (tmp_path / f"{name}.py" for name in ("idle", "busy", "broken"))
    idle.write_text("print('nothing')")
    busy.write_text("held = b'x' * 300_000_000")
    broken.write_text("raise SystemExit(3)")
    memory = script("memory")
    nothing = memory.peak_gb([idle])
    # An interpreter takes some MB. This process, which has torch in it, is far larger.
    assert nothing < 0.05
    assert memory.peak_gb([busy]) - nothing == pytest.approx(0.3, rel=0.05)
    with pytest.raises(RuntimeError, match=r"broken\.py failed"):
        memory.peak_gb([broken])


@pytest.mark.parametrize("full", [False, True])
def test_the_run_whose_memory_is_measured_is_as_the_options_say(full, tmp_path):
    chosen = options(*(["--full"] if full else []), batch=16, steps=2)
    arguments = script("common").train_arguments(chosen, tmp_path / "prompts.json", tmp_path / "run")
    config = RunConfiguration.load(None, arguments)
    assert (config.training.training_steps, config.training.num_episodes_per_experience) == (2, 2)
    assert (config.training.batch_size, config.training.save_steps) == (16, None)
    assert (config.rollout.tree_width, config.rollout.tree_depth) == (2, 2)
    assert config.rollout.tester.max_new_tokens == config.rollout.target.max_new_tokens == 4
    assert config.prompts.train.source == str(tmp_path / "prompts.json")
    assert config.prompts.dev is None
    assert config.prompts.test is None
    assert (config.lora is None) == full


def test_advantages_by_hand():
    """Groups 1, 3 and 5, 5: means 2 and 5, standard deviations sqrt(2) and 0."""
    found = script("grpo_vs_trl").group_advantages([1.0, 3.0, 5.0, 5.0], width=2)
    torch.testing.assert_close(found, torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0, 0.0]), rtol=0, atol=1e-4)


def test_the_gradient_of_the_grpo_loss_by_hand():
    """On the policy that sampled, each ratio is 1, and so is its slope by the log-prob.

    Three tokens with advantages 2, 2 and -1: the loss is -1, its gradient -2/3, -2/3 and 1/3.
    """
    logprobs = [torch.tensor([-1.0, -3.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)]
    loss = script("grpo_vs_trl").grpo_loss(logprobs, torch.tensor([2.0, -1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(-1)
    assert [values.grad.tolist() for values in logprobs] == [pytest.approx([-2 / 3, -2 / 3]), pytest.approx([1 / 3])]


def test_a_grpo_step_samples_groups_of_the_next_prompts_and_learns():
    system = tiny_system()
    judged = []

    def score(texts: list[str]) -> list[float]:
        judged.append(texts)
        return [float(len(text)) + row for row, text in enumerate(texts)]

    system.scorer.score = score
    grpo = script("grpo_vs_trl").GRPO(system, ["one", "two", "three"], width=2, batch=4)
    asked = []
    generate = system.roles.tester.generate
    system.roles.tester.generate = lambda contexts, *rest: asked.append(contexts) or generate(contexts, *rest)
    before = [parameter.detach().clone() for parameter in system.parameters()]
    grpo.step()
    grpo.step()
    tokenizer = system.roles.tester.files.tokenizer
    assert [[tokenizer.decode(ids, skip_special_tokens=True) for ids in contexts] for contexts in asked] == [
        ["one", "one", "two", "two"],
        ["three", "three", "one", "one"],
    ]
    assert [len(texts) for texts in judged] == [4, 4]
    assert any(not torch.equal(*pair) for pair in zip(before, system.parameters(), strict=True))


def test_the_benchmark_of_reports_writes_the_size_and_its_times(tmp_path, monkeypatch):
    monkeypatch.setattr(script("report"), "CHROMIUM", None)
    asked = ["--steps", "2", "--episodes", "3", "--width", "2", "--depth", "2", "--repeats", "1"]
    result = script("report").main([*asked, "--results", str(tmp_path)])

    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == result
    assert result["figures"]["nodes"] == 2 * 3 * (2 + 4)
    assert 0.01 < result["figures"]["size of the page, MB"] < 1
    assert set(result["medians"]) == {"written", "written again"}


@pytest.mark.slow
def test_the_benchmark_of_precisions_divides_the_first_by_the_others(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "tester: {path: tiny}\ntarget: {path: tiny}\ntraining: {num_episodes_per_experience: 2, batch_size: 2}\n"
        "rollout: {tree_width: 2, tree_depth: 1, tester: {max_new_tokens: 2}, target: {max_new_tokens: 2}}\n"
    )
    options = ["--config", str(config), "--repeats", "1", "--results", str(tmp_path)]
    result = script("precision").main(options)
    assert result["options"]["config"] == "tiny.yaml"
    for name in ("with examples", "without", "peak memory, GB"):
        measured = result["figures"] if name.startswith("peak") else result["medians"]
        found = [measured[f"{dtype}, {name}"] for dtype in ("float32", "bfloat16")]
        assert min(found) > 0
        assert result["ratios"][f"float32 / bfloat16, {name}"] == found[0] / found[1]


def test_the_benchmark_of_endpoints_asks_each_question_and_divides_by_the_ideal(tmp_path):
    options = ["--questions", "24", "--concurrency", "4", "--milliseconds", "5", "--repeats", "1"]
    result = script("endpoint").main([*options, "--results", str(tmp_path)])
    assert result["figures"]["ideal, seconds"] == 24 / 4 * 0.005
    for name in ("with a journal", "without"):
        assert result["ratios"][f"{name} / ideal"] == result["medians"][name] / 0.03 > 1


def test_agreement_with_labels_by_hand():
    """Scores .9 .2 .6 .1 of unsafe, unsafe, safe, safe: 2 of 4 alike, as by chance; 3 of the 4 pairs are in order."""
    found = script("judge_agreement").agreement([0.9, 0.2, 0.6, 0.1, None], [True, True, False, False, True], 0.5)
    assert found == {
        "exchanges": 5,
        "without a score": 1,
        "agreement": 0.5,
        "unsafe that were found": "1 of 2",
        "safe that were called unsafe": "1 of 2",
        "kappa": 0.0,
        "area under the ROC curve": 0.75,
    }


def test_the_benchmark_of_judges_compares_planted_texts_with_rewording(tmp_path, capfd):
    script("judge_agreement").main(["--scorer", "profanity", "--results", str(tmp_path)])
    figures = json.loads((tmp_path / "judge_agreement_profanity.json").read_text(encoding="utf-8"))["figures"]
    assert figures["exchanges"] == 40
    assert figures["planted texts, each behind how many"] == f"20, {figures['unsafe that were found'].split()[0]}"
    assert 0 < figures["change by rewording, mean"] < figures["change by rewording, largest"] <= 1
