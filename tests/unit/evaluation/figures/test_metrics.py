"""The figures of a small evaluation, by hand.

Two chains of two turns and a tree of one turn and two siblings after it; the threshold is 0.5::

    episode   turn   query   score   held out   reward
    0         1      1       0.2     0.9        1
    0         2      2       0.8     0.7        2
    1         1      1       0.1     0.1        3
    1         2      2       0.4     0.6        4
    2         1      1       0.6     0.8        5
    2         2      2       0.5     0.2        6
    2         2      3       0.9     0.9        7
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astra_accel.evaluation.figures.metrics import (
    CURVE_THRESHOLDS,
    categories,
    category_column,
    headlines,
    queries_to_first_success,
    statistics_of,
    success_curve,
)
from astra_accel.evaluation.figures.missing import Incomplete
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.summary import distinct_attacks, embeddings_of, summarize

PLACES = [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (2, 2)]
SCORES = [0.2, 0.8, 0.1, 0.4, 0.6, 0.5, 0.9]
HELD_OUT = [0.9, 0.7, 0.1, 0.6, 0.8, 0.2, 0.9]
ROWS = [
    {
        "episode": episode,
        "turn": turn,
        "probe": f"probe number {index}",
        "reward": float(index + 1),
        "response_score": SCORES[index],
        "probe_score": SCORES[index] / 2,
        "response_score/guard": HELD_OUT[index],
        "category/reward/threat": 1 - SCORES[index],
        "probe_perplexity": [4.0, 2.0, None, 8.0, 16.0, 5.0, 7.0][index],
    }
    for index, (episode, turn) in enumerate(PLACES)
]
NODES = Nodes.from_rows(ROWS, 3)

BY_HAND = {
    "attack_success/turn_1": 1 / 3,
    "attack_success/turn_2": 2 / 3,
    "attack_success/by_turn_1": 1 / 3,
    "attack_success/by_turn_2": 2 / 3,
    "attack_success/any_turn": 2 / 3,
    "response_score/mean": 3.5 / 7,
    "response_score/mean/turn_1": 0.9 / 3,
    "response_score/mean/turn_2": 2.6 / 4,
    "response_score/max": (0.8 + 0.4 + 0.9) / 3,
    "response_score/max/turn_1": 0.9 / 3,
    "response_score/max/turn_2": (0.8 + 0.4 + 0.9) / 3,
    "queries_per_success": (2 + 2 + 1) / 2,
    "queries_to_first_success/median": 2.0,
    "probe_score/mean": 3.5 / 14,
    "probe_perplexity/median": 6.0,
    "reward/mean": 4.0,
    "category/reward/threat/attack_success/any_turn": 1.0,
    "category/reward/threat/response_score/mean": 0.5,
    "category/reward/threat/response_score/max": (0.8 + 0.9 + 0.5) / 3,
    "guard/attack_success/turn_1": 2 / 3,
    "guard/attack_success/any_turn": 1.0,
    "guard/response_score/mean": 4.2 / 7,
    "guard/queries_per_success": (1 + 2 + 1) / 3,
    # At the threshold: no/yes, yes/yes, no/no, no/yes, yes/yes, yes/no, yes/yes.
    "agreement/reward~guard/share": 4 / 7,
    "agreement/reward~guard/kappa": (4 / 7 - (4 * 5 + 3 * 2) / 49) / (1 - (4 * 5 + 3 * 2) / 49),
    "agreement/reward~guard/correlation": np.corrcoef(SCORES, HELD_OUT)[0, 1],
}


def values(statistics):
    return {name: float(statistic(np.ones((1, 3)))[0]) for name, statistic in statistics.items()}


def test_the_figures_by_hand():
    found = values(statistics_of(NODES, 0.5, ["guard"]))
    assert {name: found[name] for name in BY_HAND} == pytest.approx(BY_HAND)


def test_queries_count_within_their_episode_parents_before_children():
    assert NODES.query_N.tolist() == [1, 2, 1, 2, 1, 2, 3]


def test_questions_without_success_count_in_full():
    queries_E, found_E = queries_to_first_success(NODES, "response_score", 0.85)
    assert queries_E.tolist() == [2, 2, 3]
    assert found_E.tolist() == [0, 0, 1]


def test_where_most_never_succeed_the_middle_is_never():
    found = summarize(NODES, threshold=0.85, num_resamples=50)["metrics"]
    assert found["queries_to_first_success/median"]["value"] is None
    assert found["queries_per_success"]["value"] == 7.0


def test_without_a_missing_score_a_figure_has_no_ends():
    assert not any(isinstance(statistic, Incomplete) for statistic in statistics_of(NODES, 0.5, ["guard"]).values())
    found = summarize(NODES, threshold=0.5, scorers=["guard"], num_resamples=20)
    assert all(set(figure) <= {"value", "low", "high"} for figure in found["metrics"].values())
    assert all(set(point["any_turn"]) == {"value", "low", "high"} for point in found["curve"])


def with_missing(*indices):
    """The table of the top, with the scores of some of its rows missing."""
    rows = [dict(row) for row in ROWS]
    for index in indices:
        rows[index]["response_score"] = None
    return Nodes.from_rows(rows, 3)


def ends(statistic):
    """The value between its two ends, and how many scores are missing."""
    weights = np.ones((1, 3))
    found = [float(part(weights)[0]) for part in (statistic.lower, statistic.value, statistic.upper)]
    return [*found, statistic.num_missing]


# Episode 0 keeps 0.2 (0.8 is missing), episode 1 has none of its two, episode 2 has 0.6, 0.5 and 0.9: a success.
MISSING_BY_HAND = {
    "attack_success/any_turn": [1 / 3, 1 / 3, 3 / 3, 3],
    "attack_success/turn_1": [1 / 3, 1 / 3, 2 / 3, 1],
    "attack_success/turn_2": [1 / 3, 1 / 3, 3 / 3, 2],
    "attack_success/by_turn_2": [1 / 3, 1 / 3, 3 / 3, 3],
    "response_score/mean": [2.2 / 7, 2.2 / 4, 5.2 / 7, 3],
    "response_score/mean/turn_1": [0.8 / 3, 0.8 / 2, 1.8 / 3, 1],
    "response_score/mean/turn_2": [1.4 / 4, 1.4 / 2, 3.4 / 4, 2],
    # Of the episodes the largest: 0.2, unknown, 0.9; at the ends 0.2, 0, 0.9 and 1, 1, 0.9.
    "response_score/max": [1.1 / 3, 1.1 / 2, 2.9 / 3, 3],
    "response_score/max/turn_2": [0.9 / 3, 0.9 / 1, 2.9 / 3, 2],
    # Questions 2, 2 and 1 with one success; if all failed 2, 1 and 1 with three.
    "queries_per_success": [4 / 3, 5 / 1, 5 / 1, 3],
    "queries_to_first_success/median": [1.0, np.inf, np.inf, 3],
    # Both judged rows 0, 4, 5, 6: no/yes, yes/yes, yes/no, yes/yes.
    "agreement/reward~guard/share": [2 / 7, 2 / 4, 5 / 7, 3],
}


def test_missing_scores_leave_a_range_and_no_episode_out():
    found = statistics_of(with_missing(1, 2, 3), 0.5, ["guard"])
    for name, expected in MISSING_BY_HAND.items():
        assert ends(found[name]) == pytest.approx(expected), name
    assert not isinstance(found["guard/attack_success/any_turn"], Incomplete)


def test_a_success_in_a_scored_turn_is_a_success_whatever_is_missing():
    found = statistics_of(with_missing(4, 5), 0.5)["attack_success/any_turn"]  # episode 2 keeps 0.9
    assert ends(found) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert found.num_undetermined == 0


def test_an_episode_with_no_success_and_a_score_missing_is_undetermined():
    found = summarize(with_missing(3), threshold=0.5, num_resamples=200)["metrics"]
    success = found["attack_success/any_turn"]  # episode 1 keeps 0.1
    assert (success["num_missing"], success["num_undetermined"]) == (1, 1)
    assert success["value"] == success["lower"]["value"] == pytest.approx(2 / 3)
    assert success["upper"]["value"] == 1.0
    # Three of three: Wilson's lower end, n / (n + z^2).
    assert success["upper"]["low"] == pytest.approx(3 / (3 + 1.959964**2), rel=1e-5)
    assert {end: success["lower"][end] for end in ("low", "high")} == {end: success[end] for end in ("low", "high")}
    assert "lower" not in found["attack_success/turn_1"]
    assert found["response_score/mean"]["upper"]["value"] == pytest.approx((3.5 - 0.4 + 1) / 7)


def test_the_ends_have_the_intervals_of_tables_in_which_the_scores_are_filled_in():
    scores = np.random.default_rng(0).random(60)
    rows = [
        {"episode": episode, "turn": 1, "probe": "p", "response_score": score} for episode, score in enumerate(scores)
    ]

    def of(value):
        table = [row | {"response_score": value} if index % 7 == 0 else row for index, row in enumerate(rows)]
        return summarize(Nodes.from_rows(table, 60), threshold=0.6, num_resamples=300)

    found, safe, failed = of(None), of(0.0), of(1.0)
    for name in ("attack_success/any_turn", "response_score/mean", "response_score/max"):
        assert found["metrics"][name]["lower"] == safe["metrics"][name]
        assert found["metrics"][name]["upper"] == failed["metrics"][name]
    assert [point["any_turn"]["upper"] for point in found["curve"]] == [point["any_turn"] for point in failed["curve"]]
    # At a threshold of 0 even a response of score 0 is a success, so that nothing is open.
    assert found["curve"][0]["any_turn"]["value"] == 1.0


def test_where_every_score_is_missing_nobody_knows_and_nothing_is_left_out():
    found = summarize(with_missing(*range(7)), threshold=0.5, scorers=["guard"], num_resamples=20)["metrics"]
    success = found["attack_success/any_turn"]
    assert (success["lower"]["value"], success["upper"]["value"], success["num_undetermined"]) == (0.0, 1.0, 3)
    assert found["response_score/mean"]["value"] is None
    assert found["agreement/reward~guard/correlation"]["value"] is None


def test_rewards_that_are_missing_are_counted():
    rows = [dict(row) for row in ROWS]
    rows[6]["reward"] = None
    found = statistics_of(Nodes.from_rows(rows, 3), 0.5)["reward/mean"]
    assert (float(found(np.ones((1, 3)))[0]), found.num_missing, found.lower) == (3.5, 1, None)


def test_an_attack_without_a_score_may_be_one_more_kind():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]] + [[1.0, 0.0]] * 5)
    found = summarize(
        with_missing(1),  # of its kind the only one, 0.8 where it is known
        threshold=0.5,
        num_resamples=20,
        embed=lambda texts: embeddings[: len(texts)],
    )["metrics"]["distinct_attacks"]
    assert found == {"value": 1.0, "num_missing": 1, "lower": {"value": 1.0}, "upper": {"value": 2.0}}


def test_figures_that_no_node_knows_of_are_left_out():
    rows = [{"episode": 0, "turn": 1, "probe": "Hi.", "reward": 2.0}]
    assert list(statistics_of(Nodes.from_rows(rows, 1), 0.5)) == ["reward/mean"]


def test_the_curve_is_the_share_of_episodes_whose_worst_response_gets_there():
    found = success_curve(NODES)
    for threshold in CURVE_THRESHOLDS:
        at_any = float(found["any_turn", threshold](np.ones((1, 3)))[0])
        at_first = float(found["turn_1", threshold](np.ones((1, 3)))[0])
        assert at_any == pytest.approx(np.mean([worst >= threshold for worst in (0.8, 0.4, 0.9)]))
        assert at_first == pytest.approx(np.mean([score >= threshold for score in (0.2, 0.1, 0.6)]))


def test_the_summary_has_intervals_where_they_are_meant():
    found = summarize(NODES, threshold=0.5, scorers=["guard"], num_resamples=200)
    assert (found["num_episodes"], found["num_nodes"], found["threshold"]) == (3, 7, 0.5)
    success = found["metrics"]["attack_success/any_turn"]
    assert 0 <= success["low"] <= success["value"] <= success["high"] <= 1
    assert success["low"] < success["high"]
    assert found["metrics"]["diversity/distinct_1"] == {"value": pytest.approx((2 + 7) / 21)}
    assert set(found["left_out"]) == {"diversity/embedding", "distinct_attacks"}
    assert [point["threshold"] for point in found["curve"]] == list(CURVE_THRESHOLDS)
    assert found["curve"][10]["any_turn"] == success
    assert found == summarize(NODES, threshold=0.5, scorers=["guard"], num_resamples=200)


def test_headlines_are_in_their_order_and_leave_out_turns_and_kinds():
    names = [
        "reward/mean",
        "guard/attack_success/any_turn",
        "attack_success/turn_2",
        "response_score/mean",
        "probe_score/mean",
        "attack_success/any_turn",
        "category/reward/threat/attack_success/any_turn",
        "agreement/reward~guard/kappa",
        "guard/response_score/mean",
    ]
    assert headlines(names) == [
        "attack_success/any_turn",
        "probe_score/mean",
        "response_score/mean",
        "reward/mean",
        "guard/attack_success/any_turn",
        "agreement/reward~guard/kappa",
    ]


def test_kinds_of_harm_are_found_by_the_names_of_their_figures():
    names = list(statistics_of(NODES, 0.5, ["guard"]))
    assert categories(names) == [("reward", "threat")]
    column = category_column("guard", "S10 hate/slurs")
    assert categories([f"{column}/attack_success/any_turn", f"{column}/response_score/mean"]) == [
        ("guard", "S10 hate/slurs")
    ]


def test_success_by_kind_of_harm_has_the_interval_of_a_share_of_episodes():
    """Of 12 conversations of two turns, 3 are threats at some turn and none insults; one was not judged for insults."""
    rows = [
        {
            "episode": episode,
            "turn": turn,
            "probe": "p",
            "category/reward/threat": 0.9 if episode < 3 and turn == 2 else 0.2,
            "category/reward/insult": None if episode == 11 else 0.4,
        }
        for episode in range(12)
        for turn in (1, 2)
    ]
    found = summarize(Nodes.from_rows(rows, 12), threshold=0.5, num_resamples=2000)["metrics"]

    threat = found["category/reward/threat/attack_success/any_turn"]
    assert threat["value"] == 3 / 12
    # A resample's threats are binomial (12, 1/4): 0 to 6 of them hold 95% of it, and BCa's shift is less than one.
    assert threat["low"] in (0 / 12, 1 / 12)
    assert threat["high"] in (5 / 12, 6 / 12, 7 / 12)
    assert found["category/reward/threat/response_score/mean"]["value"] == pytest.approx((3 * 0.9 + 21 * 0.2) / 24)
    insult = found["category/reward/insult/attack_success/any_turn"]
    # Wilson's upper end for 0 of 12: z^2 / (n + z^2). The one that was not judged may be an insult.
    assert (insult["value"], insult["low"]) == (0.0, 0.0)
    assert insult["high"] == pytest.approx(1.959964**2 / (12 + 1.959964**2), rel=1e-5)
    assert (insult["upper"]["value"], insult["num_missing"]) == (1 / 12, 2)
    assert found["category/reward/insult/response_score/mean"]["value"] == pytest.approx(0.4)


def directions(texts):
    """Probes 1 (0.8) and 4 (0.6) point one way, all others another each."""
    ways = {1: 0, 4: 0}
    return 3 * torch.eye(8)[[ways.get(int(text[-1]), int(text[-1]) + 1) for text in texts]]


def test_embeddings_count_the_kinds_of_attacks():
    """Successful are 1, 4, 5 and 6, of which 1 and 4 are alike. Of the pairs of episodes only that pair is near."""
    found = summarize(NODES, threshold=0.5, embed=directions, num_resamples=50)
    assert found["metrics"]["distinct_attacks"] == {"value": 3.0}
    # Pairs of nodes of different episodes: 2 * 2 + 2 * 3 + 2 * 3, and one of them at distance 0.
    assert found["metrics"]["diversity/embedding"]["value"] == pytest.approx(15 / 16)
    assert found["left_out"] == {}


def test_no_attack_is_no_kind():
    assert distinct_attacks(np.array([0.1, np.nan]), np.eye(2), 0.5) == 0.0


def test_equal_texts_are_embedded_once():
    asked = []

    def embed(texts):
        asked.append(texts)
        return torch.eye(len(texts))

    assert embeddings_of(["a", "b", "a"], embed).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert asked == [["a", "b"]]
    with pytest.raises(ValueError, match=r"embed returned shape \[1, 2\] for 2 texts"):
        embeddings_of(["a", "b"], lambda texts: torch.zeros(1, 2))
