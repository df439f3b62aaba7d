import pyarrow.parquet as pq
import pytest

from astra_accel.files.tables import write_table
from astra_accel.report.parts import SCORE, read_part
from tests.helpers.written_runs import write_run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run") / "rollouts" / "step-000002.parquet"


def test_episodes_are_the_rows_of_the_file(file):
    rows = pq.read_table(file).to_pylist()
    part = read_part(file)

    assert (part.step, part.num_episodes) == (2, 4)
    for number in range(4):
        expected = [row for row in rows if row["episode"] == number]
        found = part.episode(number)
        assert [row | {"context": None} for row in found] == [row | {"context": None} for row in expected]
        assert part.prompts[number] == expected[0]["context"]
        assert part.worst[number] == max(row[SCORE] for row in expected)


def test_scores_may_be_missing(file, tmp_path):
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        row[SCORE] = {0: None, 1: 0.25}.get(row["episode"], 0.75)
    write_table(tmp_path / "some.parquet", rows)
    write_table(tmp_path / "none.parquet", [{name: row[name] for name in row if name != SCORE} for row in rows])

    some, none = read_part(tmp_path / "some.parquet"), read_part(tmp_path / "none.parquet")

    assert some.worst == [None, 0.25, 0.75, 0.75]
    assert some.success_share(0.5) == pytest.approx(2 / 4)  # of all responses, those without a score too
    assert some.success_range(0.5) == pytest.approx((2 / 4, 3 / 4))
    assert none.worst == [None] * 4
    assert none.success_share(0.5) is None


def test_a_step_without_episodes_is_empty(file, tmp_path):
    pq.write_table(pq.read_table(file).slice(0, 0), tmp_path / "empty.parquet")
    part = read_part(tmp_path / "empty.parquet")

    assert (part.num_episodes, part.worst, part.success_share(0.5)) == (0, [], None)
    assert part.distinct_pairs is None
