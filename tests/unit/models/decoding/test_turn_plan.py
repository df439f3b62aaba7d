"""The tasks of a turn, by hand: which rows, how many tokens, of which noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding.length_regimes import LengthRegimes
from astra_accel.models.decoding.prefill import PrefillRequest, ScoreRequest
from astra_accel.models.decoding.turn_plan import Generated, Task, TurnPlan
from astra_accel.models.forward.prefix_tree import Ids

END = 0
AT_MOST = 4
DEAR = 1e9
"""The price of a task at which rows are parted only where they must be."""


def planned(
    contexts: Sequence[Ids], limits: tuple[int, ...] = (), scored: Sequence[ScoreRequest] | None = None
) -> TurnPlan:
    """Turns of up to four tokens; the noise keys of row 2 are 20, 21, 22 and 23, twice each."""
    keys = [np.arange(AT_MOST)[:, None].repeat(2, axis=1) + 10 * row for row in range(len(contexts))]
    sampling = SamplingConfiguration(max_new_tokens=AT_MOST)
    end_ids, device = frozenset({END}), torch.device("cpu")
    return TurnPlan(LengthRegimes(limits), contexts, keys, sampling, end_ids, scored, None, device)


def said(task: Task) -> dict[int, tuple[Ids, list[int]]]:
    """What is read for each row of a task, and the keys of the tokens that are drawn."""
    assert task.sampling.max_new_tokens == task.keys_BT2.shape[1]
    read = [request.context for request in task.requests]
    return dict(zip(task.rows, zip(read, task.keys_BT2[..., 0].tolist(), strict=True), strict=True))


def generated(*ids: int, scored: tuple[float, ...] | None = None) -> Generated:
    return Generated(ids, tuple(-float(token) for token in ids), scored)


def test_without_limits_all_rows_are_one_task_and_it_is_the_last() -> None:
    plan = planned([(1, 2), (1, 3), (4, 5, 6)])
    (task,) = plan.next_tasks(batch_rows=8, price=DEAR)
    keys = [0, 1, 2, 3]
    assert said(task) == {
        0: ((1, 2), keys),
        1: ((1, 3), [10 + key for key in keys]),
        2: ((4, 5, 6), [20 + key for key in keys]),
    }
    answers = {0: generated(7, END), 1: generated(END), 2: generated(7, 7, 7, 7)}
    plan.add(task, [answers[row] for row in task.rows])
    assert plan.results == list(answers.values())
    assert plan.next_tasks(batch_rows=8, price=DEAR) == []


def test_a_task_has_no_more_rows_than_there_is_room_for() -> None:
    tasks = planned([(1,), (2,), (3,), (4,), (5,)]).next_tasks(batch_rows=2, price=DEAR)
    assert max(len(task.rows) for task in tasks) == 2
    assert sorted(row for task in tasks for row in task.rows) == [0, 1, 2, 3, 4]


def test_rows_are_parted_by_regime_and_by_how_far_they_are_from_its_end() -> None:
    """Up to 5 tokens are read in one way. 3 tokens are followed by 3 until 6 would be read, 5 by 1, and 6 by all 4."""
    contexts = [(1,) * 3, (1,) * 6, (1,) * 5, (2,) * 3]
    tasks = planned(contexts, limits=(5,)).next_tasks(batch_rows=8, price=DEAR)
    found = sorted((task.regime, task.sampling.max_new_tokens, sorted(task.rows)) for task in tasks)
    assert found == [(0, 1, [2]), (0, 3, [0, 3]), (1, 4, [1])]


def test_a_turn_that_outgrows_its_regime_goes_on_in_the_next_with_its_own_noise() -> None:
    scored = [ScoreRequest(2, (3, 4))] * 2
    plan = planned([(1, 2, 3, 4), (1, 2, 3, 5)], limits=(5,), scored=scored)
    (task,) = plan.next_tasks(batch_rows=8, price=DEAR)
    assert said(task) == {0: ((1, 2, 3, 4), [0, 1]), 1: ((1, 2, 3, 5), [10, 11])}
    assert [request.scored for request in task.requests] == scored
    answers = {0: generated(7, END, scored=(-1.0, -2.0)), 1: generated(7, 8, scored=(-3.0, -4.0))}
    plan.add(task, [answers[row] for row in task.rows])

    (task,) = plan.next_tasks(batch_rows=8, price=DEAR)
    assert (task.regime, said(task)) == (1, {1: ((1, 2, 3, 5, 7, 8), [12, 13])})
    assert task.requests == [PrefillRequest((1, 2, 3, 5, 7, 8))]  # what was scored is not asked for again
    plan.add(task, [generated(9, 9)])
    assert plan.results == [answers[0], generated(7, 8, 9, 9, scored=(-3.0, -4.0))]
    assert plan.next_tasks(batch_rows=8, price=DEAR) == []


def test_nothing_is_scored_of_tokens_that_are_predicted_in_another_regime() -> None:
    scored = [ScoreRequest(5, (1, 1)), ScoreRequest(6, (1,))]
    tasks = planned([(1,) * 6, (2,) * 6], limits=(5,), scored=scored).next_tasks(batch_rows=8, price=DEAR)
    assert {task.rows[at]: task.requests[at].scored for task in tasks for at in range(len(task.rows))} == {
        0: None,
        1: scored[1],
    }
