"""What recipes learn over seeds: the intervals and figures of the benchmark, and that it runs whole on tiny models."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from astra_accel.config import RolloutConfiguration
from astra_accel.evaluation.figures.statistics import Median, Rate, Ratio
from astra_accel.evaluation.folder import EvaluationError
from astra_accel.methods.ast import HFASTSystem
from tests.helpers.benchmarks import SCRIPTS, script, scripts  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("scripts")
TINY = ["--tester.path", "tiny", "--target.path", "tiny", "--evaluation.num_resamples", "50"]


def rate(*succeeded: float) -> Rate:
    return Rate(np.array(succeeded, dtype=float), np.ones(len(succeeded)))


def written_prompts(folder: Path, count: int) -> Path:
    file = folder / "prompts.json"
    file.write_text(json.dumps([f"opening number {number}" for number in range(count)]), encoding="utf-8")
    return file


def test_resamples_of_seeds_and_prompts_are_those_of_a_plain_loop():
    """Drawn by hand: the cells of drawn seeds and drawn prompts, the same prompts for every seed and the untrained."""
    generator = np.random.default_rng(3)
    scores_SE, untrained_E = generator.random((3, 5)), generator.random(5)
    seeds_drawn = generator.integers(3, size=(20, 3))
    prompts_drawn = generator.integers(5, size=(20, 5))

    expected = [
        np.mean([np.median([scores_SE[seed, prompt] for prompt in prompts]) for seed in seeds])
        - np.median([untrained_E[prompt] for prompt in prompts])
        for seeds, prompts in zip(seeds_drawn, prompts_drawn, strict=True)
    ]
    counts_RS = np.stack([np.bincount(drawn, minlength=3) for drawn in seeds_drawn]).astype(float)
    weights_RE = np.stack([np.bincount(drawn, minlength=5) for drawn in prompts_drawn]).astype(float)
    testers = [Median(row, np.arange(5)) for row in scores_SE]
    found = script("crossed").crossed_values(testers, weights_RE, counts_RS, Median(untrained_E, np.arange(5)))
    np.testing.assert_allclose(found, expected)


def test_the_interval_is_that_of_all_draws_of_two_seeds_and_three_prompts():
    """Of 2 seeds there are 4 draws, of 3 prompts 27: 108 equally likely resamples, counted out."""
    table = np.array([[0.0, 0.1, 0.9], [0.3, 0.4, 0.8]])
    means = [
        table[np.ix_(seeds, prompts)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for prompts in itertools.product(range(3), repeat=3)
    ]
    found = script("crossed").crossed_estimate(
        [Ratio(row, np.ones(3)) for row in table], 3, num_resamples=100_000, confidence=0.8
    )
    assert found.value == pytest.approx(table.mean())
    for end, level in ((found.low, 0.1), (found.high, 0.9)):
        assert np.mean(np.array(means) < end - 0.011) <= level <= np.mean(np.array(means) <= end + 0.011)


def test_the_difference_to_untrained_is_on_the_same_prompts():
    """Every seed has a tenth more on every prompt, so however prompts are drawn, the difference is a tenth."""
    untrained = Ratio(np.array([0.1, 0.5, 0.7]), np.ones(3))
    testers = [Ratio(untrained.numerator_E + 0.1, np.ones(3))] * 2
    found = script("crossed").crossed_estimate(testers, 3, less=untrained)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_without_any_success_the_interval_is_not_a_point():
    """Wilson's of 0 in 10: z^2 / (10 + z^2)."""
    found = script("crossed").crossed_estimate([rate(*[0] * 10)] * 3, 10)
    assert (found.value, found.low) == (0, pytest.approx(0, abs=1e-12))
    assert found.high == pytest.approx(1.959964**2 / (10 + 1.959964**2))
    with pytest.raises(ValueError, match="0 testers"):
        script("crossed").crossed_estimate([], 10)


def evaluation(successes: list[float], perplexity: float = 50.0, self_bleu: float = 0.1, **settings: Any) -> Any:
    figures = script("learn_figures")
    value = sum(successes) / len(successes)
    identity = {
        "seeds": [f"prompt {number}" for number in range(len(successes))],
        "scorers": ["reward"],
        "tree_width": 1,
        "settings": {"target": {"path": "embedded"}, "rollout": {"tree_depth": 3, **settings}},
    }
    estimates = {
        figures.SUCCESS: {"value": value, "low": value - 0.25, "high": value + 0.25},
        figures.PERPLEXITY: {"value": perplexity},
        figures.SELF_BLEU: {"value": self_bleu},
        figures.DISTINCT: {"value": 0.9},
    }
    return figures.Evaluation(estimates, {figures.SUCCESS: rate(*successes)}, len(successes), identity)


def test_a_recipe_has_means_over_seeds_and_ratios_to_untrained():
    figures = script("learn_figures")
    untrained = evaluation([0, 0, 0, 1])
    seeds = {0: evaluation([1, 1, 0, 1], 60.0, 0.1), 7: evaluation([1, 1, 1, 1], 80.0, 0.2)}
    recipe = figures.Recipe(seeds, [10.0, 20.0], [64, 64])
    means = recipe.means()
    assert means[figures.SUCCESS]["value"] == pytest.approx(0.875)
    assert means[figures.SELF_BLEU] == {"value": pytest.approx(0.15)}
    assert recipe.ratios(untrained) == {
        figures.SUCCESS: pytest.approx(3.5),
        figures.PERPLEXITY: pytest.approx(1.4),
        figures.SELF_BLEU: pytest.approx(1.5),
    }
    assert recipe.differences(untrained)[figures.SUCCESS]["value"] == pytest.approx(0.625)
    # The interval of the untrained tester ends at 0.5.
    assert recipe.every_seed_above(untrained)
    one_is_not = {0: seeds[0], 1: evaluation([0, 0, 1, 1])}
    assert not figures.Recipe(one_is_not, [1.0] * 2, [1] * 2).every_seed_above(untrained)

    row = figures.table(untrained, {"mine": recipe}).splitlines()[-1]
    assert row.startswith("| mine | 0.875 [")
    assert row.endswith("| 3.5 | yes | 1.4 | 1.5 | 15 | 64 |")
    assert figures.table_of_seeds({"mine": recipe}).splitlines()[-1].startswith("| mine | 7 | 1 [0.75, 1.25] | 80 |")
    assert math.isinf(figures.ratio(0.2, 0.0))
    assert math.isnan(figures.ratio(None, 0.2))


def test_testers_that_were_asked_otherwise_are_not_compared():
    untrained = evaluation([0, 1])
    untrained.check_same(evaluation([1, 1]), Path("same"))
    with pytest.raises(EvaluationError, match=r"elsewhere .* different are rollout\.tree_depth \(3, now 1\)"):
        untrained.check_same(evaluation([1, 1], tree_depth=1), Path("elsewhere"))


def test_the_seconds_of_a_training_step_count_once_and_every_probe_does(tmp_path):
    records = [
        {"step": 1, "update": 1, "seconds/rollout": 2.0, "seconds/update": 1.0},
        {"step": 1, "update": 2, "seconds/rollout": 2.0, "seconds/update": 1.0},
        {"step": 2, "update": 3, "seconds/rollout": 4.0, "reward/mean": 9.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (tmp_path / "rollouts").mkdir()
    for step, count in enumerate((3, 4)):
        pq.write_table(pa.table({"probe": ["x"] * count}), tmp_path / "rollouts" / f"step-{step}.parquet")
    figures = script("learn_figures")
    assert figures.training_seconds(tmp_path) == 7.0
    assert figures.probes_asked(tmp_path) == 7


def test_short_prompts_are_held_out_chosen_by_and_trained_on(tmp_path):
    runs = script("learn_runs")
    file = tmp_path / "prompts.json"
    short = [f"number {number}" for number in range(105)]
    file.write_text(json.dumps(["one that is too long", short[0], *short]), encoding="utf-8")
    options = argparse.Namespace(prompts=file, held_out=2, max_words=3, output=tmp_path)
    found = runs.split_prompts(options)
    assert (found["test"], found["dev"], found["train"]) == (short[:2], short[2:102], short[102:])
    training, evaluating = runs.prompt_fields(options)
    assert training[:2] == ["--prompts.test", "null"]
    assert f"{tmp_path / 'dev_prompts.json'}" in training
    assert evaluating == ["--prompts.test.source", str(tmp_path / "test_prompts.json"), "--prompts.test.split", "train"]
    options.held_out = 5
    with pytest.raises(ValueError, match=r"105 of them of at most 3 words \(--max-words\); expected more than 105"):
        runs.split_prompts(options)


def test_judges_are_names_or_objects():
    judges = script("learn_runs").judges
    found = judges(["detoxify", '{"name": "classifier", "options": {"model": "some/model"}}'])
    assert found == {
        "detoxify": {"name": "detoxify"},
        "classifier": {"name": "classifier", "options": {"model": "some/model"}},
    }
    for wrong in ('{"options": {}}', '{"name": '):
        with pytest.raises(ValueError, match=r"--judge is .*; expected"):
            judges([wrong])


def test_mistakes_are_told_before_anything_runs(tmp_path, capsys):
    learn = script("learn")
    with pytest.raises(ValueError, match=r"no recipe 'nonsense'.*dpo, grpo"):
        learn.main(["--recipes", "mle", "nonsense", "--output", str(tmp_path / "runs")])
    for wrong, part in (
        (["--seeds", "1", "1"], "each once"),
        (["--training.seed", "3"], "--training.seed is decided by an option"),
        (["--jobs", "0"], "--jobs is 0"),
    ):
        with pytest.raises(SystemExit):
            learn.main([*wrong, "--output", str(tmp_path / "runs")])
        assert part in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_recipes_that_are_evaluated_otherwise_are_told_before_anything_runs(tmp_path):
    check = script("learn_runs").check_alike
    lengths = {}
    for length in (16, 24):
        lengths[f"of_{length}"] = tmp_path / f"{length}.yaml"
        lengths[f"of_{length}"].write_text(f"rollout: {{tester: {{max_new_tokens: {length}}}}}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"of_16 and of_24 .* rollout\.tester\.max_new_tokens \(16, now 24\)"):
        check(lengths, [])
    check(lengths, ["--rollout.tester.max_new_tokens", "8"])


def test_runs_share_the_cores_and_tell_where_a_failed_one_said_why(tmp_path, monkeypatch):
    runs = script("learn_runs")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    log = tmp_path / "logs" / "run.log"
    threads = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit(int(sys.argv[1]))"
    options = argparse.Namespace(prompts="bundled", output=tmp_path, judge={}, turns=3, jobs=3)
    mine = runs.Runs(options, [])
    runs.run_python("-c", threads, "0", log=log, threads=mine.threads)
    assert log.read_text(encoding="utf-8") == "2\n"
    with pytest.raises(RuntimeError, match=r"failed \(3\); its error is at the end of .*run\.log"):
        runs.run_python("-c", threads, "3", log=log, threads=1)
    assert mine.side_by_side([lambda: 1, lambda: 2]) == [1, 2]
    options.jobs = 1
    assert (runs.Runs(options, []).threads, runs.Runs(options, []).log_of(tmp_path)) == (None, None)


@pytest.mark.slow
def test_learning_is_measured_over_seeds(tmp_path, capfd, monkeypatch):
    arguments = ["--recipes", "grpo", "--seeds", "0", "3", "--prompts", str(written_prompts(tmp_path, 104))]
    arguments += ["--held-out", "2", "--turns", "2", "--judge", "profanity", "--jobs", "2"]
    arguments += ["--output", str(tmp_path / "runs"), "--results", str(tmp_path), *TINY]
    arguments += ["--training.training_steps", "1", "--training.num_episodes_per_experience", "4"]
    learn = script("learn")
    learn.main(arguments)
    result = json.loads((tmp_path / "learn.json").read_text(encoding="utf-8"))
    assert len(result["repeats"]["training, grpo"]) == 2
    assert min(result["repeats"]["training, grpo"]) > 0
    assert result["figures"]["probes, grpo"] == [16, 16]
    figure = "response_score/mean"
    before, mean, *each = (
        result["figures"][f"{figure}, {name}"]["value"] for name in ("untrained", "grpo", "grpo seed 0", "grpo seed 3")
    )
    assert mean == pytest.approx(sum(each) / 2)
    difference = result["figures"][f"{figure}, grpo - untrained"]
    assert difference["value"] == pytest.approx(mean - before)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert "profanity/attack_success/any_turn, grpo" in result["figures"]
    printed = capfd.readouterr().out
    assert "| untrained |" in printed
    assert "| grpo | 3 |" in printed

    # A second time nothing is trained.
    said = []
    monkeypatch.setattr(script("learn_runs"), "run_command", lambda *command, **_: said.append(command[0]))
    assert learn.main(arguments)["figures"] == result["figures"]
    assert said == ["evaluate"] * 2


def asked_reward(system: Any, states: dict[str, Any]) -> Any:
    return script("trl_run").AskedReward(system, 5, states)


def test_trl_is_paid_what_the_recipe_pays():
    """Of the scorer's own judgement: 3 times that of probe and response, twice that of the response; others weigh 0."""
    system = HFASTSystem("tiny", "tiny", combined_weight=3.0, defense_toxicity_weight=2.0, ppl_weight=0.0)
    system.scorer.score = lambda texts: [(sum(map(ord, text)) % 100) / 100 for text in texts]
    tokenizer = system.roles.tester.files.tokenizer
    states = script("trl_run").trl_prompts(system, ["What a day", "I never"])
    heard: list[tuple[str, str]] = []
    ask = system.rollout_prompt_with_target

    def listening(states: list[Any], **options: Any) -> list[Any]:
        responses = ask(states, **options)
        heard.extend((str(state), str(response)) for state, response in zip(states, responses, strict=True))
        return responses

    system.rollout_prompt_with_target = listening
    completions = ["you know", "he said", "you know"]
    first, second = states
    prompts = [first, second, first]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in completions]
    reward = asked_reward(system, states)
    found = reward(prompts=prompts, completion_ids=ids)

    for paid, prompt, completion, (asked, response) in zip(found, prompts, completions, heard, strict=True):
        assert asked == f"{states[prompt]}{completion}"
        combined, alone = system.scorer.score([f"{completion}{response}", response])
        assert paid == pytest.approx(3 * combined + 2 * alone)
    assert heard[0][1] != heard[2][1]  # each is a draw of its own
    assert reward.num_probes == 3
    assert reward.means == [pytest.approx(sum(found) / 3)]


def test_trl_reads_the_prompt_as_our_tester_does_or_says_that_it_cannot():
    read = script("trl_run").trl_prompts
    system = HFASTSystem("tiny", "tiny")
    ((text, state),) = read(system, ["What a day"]).items()
    room = system.rollout_config.tester.max_new_tokens
    assert tuple(system.roles.tester.files.tokenizer(text).input_ids) == system.views.tester.own_turn(state, room)
    # The tiny tokenizer begins every text with a token that its chat template has not.
    with pytest.raises(ValueError, match="'What a day'"):
        read(HFASTSystem("tiny", "tiny", rollout=RolloutConfiguration(format="chat")), ["What a day"])


@pytest.mark.slow
def test_both_sides_learn_for_the_same_seconds(tmp_path, capfd):
    prompts = written_prompts(tmp_path, 106)
    arguments = ["--recipe", "grpo", "--seeds", "0", "1", "--prompts", str(prompts), "--held-out", "2", "--turns", "2"]
    arguments += ["--trl-batch", "4", "--trl-generations", "2", "--output", str(tmp_path / "runs")]
    arguments += ["--results", str(tmp_path), *TINY, "--training.training_steps", "2"]
    script("learn_vs_trl").main(arguments)
    result = json.loads((tmp_path / "learn_vs_trl.json").read_text(encoding="utf-8"))
    assert "trl" in result["versions"]
    ours, theirs = (result["repeats"][f"training, {name}"] for name in ("grpo", "TRL"))
    told = sorted((tmp_path / "runs" / "trl_grpo").glob("*/seed_*/trl.json"))
    assert len(told) == 2
    for seconds, taken, file in zip(ours, theirs, told, strict=True):
        steps = json.loads(file.read_text(encoding="utf-8"))["steps"]
        # It ends with the step in which the seconds are over.
        assert seconds <= taken < seconds + 2 * taken / steps + 1
        assert result["figures"]["probes, TRL"][told.index(file)] == 4 * steps
        weights = load_file(file.parent / "tester" / "adapter_model.safetensors")
        assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
    assert {"attack_success/any_turn, TRL seed 1", "attack_success/any_turn, grpo - TRL"} <= set(result["figures"])
    assert "attack_success/any_turn, grpo / TRL" in result["ratios"]
    assert "| TRL | 1 |" in capfd.readouterr().out
