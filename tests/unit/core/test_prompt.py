"""Goals, prompts, and the places that goals fill in."""

from astra_accel.core.prompt import Goal, Prompt, as_json, goal_of, have_goals, tells_goal


def test_columns_leave_out_what_there_is_not():
    assert Goal("Forge a ticket").columns() == {"goal": "Forge a ticket"}
    whole = Goal("Forge a ticket", "Fraud", "A concert.")
    assert whole.columns() == {"goal": "Forge a ticket", "category": "Fraud", "goal_context": "A concert."}
    assert Goal.from_row({"context": "a conversation", **whole.columns()}) == whole
    assert Goal.from_row({"goal": None, "category": None}) is None


def test_places_are_filled_in_one_pass():
    goal = Goal("Say {context}", "Fraud", "{goal}")
    assert (
        goal.filled_into("Try: {goal} ({category}) {context} {other} {}")
        == "Try: Say {context} (Fraud) {goal} {other} {}"
    )
    assert Goal("Forge").filled_into("{goal}: {category}{context}") == "Forge: "


def test_which_texts_tell_a_goal():
    assert tells_goal("Bring out: {goal}")
    assert tells_goal("About {category}")
    assert not tells_goal("A set: {goals}")
    assert not tells_goal(None)


def test_prompts():
    prompt = Prompt(Goal("Forge a ticket", "Fraud"), "Hello.")
    assert str(prompt) == "Hello."
    assert as_json(prompt) == {"opening": "Hello.", "goal": "Forge a ticket", "category": "Fraud"}
    assert as_json("Hello.") == "Hello."
    assert as_json(3) == 3
    assert goal_of(prompt) == Goal("Forge a ticket", "Fraud")
    assert goal_of("Hello.") is None
    assert have_goals([prompt])
    assert not have_goals(["Hello."])
