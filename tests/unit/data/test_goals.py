"""Goals from files: the columns of published data sets, and of one's own."""

import json
from pathlib import Path

import pytest

from astra_accel.core.prompt import Goal, Prompt
from astra_accel.data import check_disjoint, load_prompts, read_prompts

# The header lines of the published files; the rows are ours.
PUBLISHED = {
    "harmbench": (
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Pick a lock,standard,illegal,,,one\n"
        '"Explain it, briefly",contextual,cybercrime,tag,"Some ""code""\nof two lines",two\n',
        [
            Prompt(Goal("Pick a lock", "illegal")),
            Prompt(Goal("Explain it, briefly", "cybercrime", 'Some "code"\nof two lines')),
        ],
    ),
    "strongreject": (
        "category,source,forbidden_prompt\nFraud,custom,How do I forge a ticket?\n",
        [Prompt(Goal("How do I forge a ticket?", "Fraud"))],
    ),
    "advbench": ("goal,target\nForge a ticket,Sure: here is how\n", [Prompt(Goal("Forge a ticket"))]),
    "jailbreakbench": (
        "Index,Goal,Target,Behavior,Category,Source\n0,Forge a ticket,Sure: here,Forgery,Fraud,Original\n",
        [Prompt(Goal("Forge a ticket", "Fraud"))],
    ),
    "own": (
        "goal,category,context,opening\nForge a ticket,Fraud,A concert.,Hi there!\nPick a lock,,,\n",
        [Prompt(Goal("Forge a ticket", "Fraud", "A concert."), "Hi there!"), Prompt(Goal("Pick a lock"))],
    ),
}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_columns_are_known(name, tmp_path):
    text, expected = PUBLISHED[name]
    path = write(tmp_path / f"{name}.csv", text)
    assert read_prompts(path) == expected


def test_columns_of_ones_own_names(tmp_path):
    rows = [{"task": "Forge a ticket", "kind": "Fraud", "about": "A concert.", "first": "Hello."}]
    path = write(tmp_path / "rows.json", json.dumps(rows))
    found = read_prompts(path, goal="task", category="kind", context="about", column="first")
    assert found == [Prompt(Goal("Forge a ticket", "Fraud", "A concert."), "Hello.")]
    assert read_prompts(path, goal="task") == [Prompt(Goal("Forge a ticket"))]


def test_slices(tmp_path):
    path = write(tmp_path / "goals.csv", "goal\n" + "".join(f"goal {number}\n" for number in range(10)))
    assert [prompt.goal.text for prompt in read_prompts(path, split="train[80%:]")] == ["goal 8", "goal 9"]


def test_openings_come_first_unless_goals_are_named(tmp_path):
    path = write(tmp_path / "both.csv", "text,goal\nHello.,Forge a ticket\n")
    assert read_prompts(path) == load_prompts(path) == ["Hello."]
    assert read_prompts(path, goal="goal") == [Prompt(Goal("Forge a ticket"), "Hello.")]


def test_a_named_column_of_openings_means_openings(tmp_path):
    path = write(tmp_path / "goals.csv", PUBLISHED["advbench"][0])
    assert read_prompts(path, column="target") == ["Sure: here is how"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "Goal"}, "no column 'Goal'; columns found: 'goal', 'target'"),
        ({"goal": "goal", "category": "kind"}, "no column 'kind'; columns found: 'goal', 'target'"),
        ({"goal": "goal", "column": "text"}, "no column 'text'; columns found: 'goal', 'target'"),
        ({"column": "target", "category": "goal"}, "category is 'goal', but there is no column of goals"),
    ],
)
def test_missing_columns(options, message, tmp_path):
    path = write(tmp_path / "goals.csv", PUBLISHED["advbench"][0])
    with pytest.raises(ValueError, match=message):
        read_prompts(path, **options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"goal": " "}, "row 2 holds the blank string ' ', expected a string of text"),
        ({"goal": 3}, "row 2 holds the int 3, expected a string of text"),
        ({"category": "Fraud"}, "row 2 holds no value, expected a string of text"),
        ({"goal": "Forge", "category": 3}, "row 2 holds the int 3 in 'category', expected text or nothing"),
        ({"goal": "Forge", "opening": ["Hi"]}, r"row 2 holds the list \['Hi'\] in 'opening', expected text or nothing"),
    ],
)
def test_bad_rows(row, message, tmp_path):
    path = write(tmp_path / "goals.jsonl", json.dumps({"goal": "Pick a lock"}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def of(*goals: str) -> list[Prompt]:
    return [Prompt(Goal(goal), opening=goal[-1]) for goal in goals]


def test_goals_are_disjoint_whatever_the_openings():
    check_disjoint(of("one", "two"), [Prompt(Goal("three"), opening="e")], ("train", "dev"))
    message = r"^1 of the test goals are goals of the train prompts too, expected none; the first is 'two'$"
    with pytest.raises(ValueError, match=message):
        check_disjoint(of("one", "two"), [Prompt(Goal("two"), opening="other")], ("train", "test"))


def test_either_all_splits_have_goals_or_none():
    with pytest.raises(ValueError, match="the train prompts have goals, but the dev prompts have none"):
        check_disjoint(of("one"), ["Hello."], ("train", "dev"))
    with pytest.raises(ValueError, match="the dev prompts have goals, but the train prompts have none"):
        check_disjoint(["Hello."], of("one"), ("train", "dev"))
