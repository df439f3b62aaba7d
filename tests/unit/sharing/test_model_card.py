"""The README of a tester, as huggingface_hub and a reader read it."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from astra_accel.config import RunConfiguration
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.summary import summarize
from astra_accel.sharing.evaluated import BEGIN, END, NOT_EVALUATED, evaluation_of, update_card, with_evaluation
from astra_accel.sharing.model_card import Origin, first_and_last, model_card, weights_in
from astra_accel.training.checkpoint.layout import TrainerState

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def origin_of(run, **state):
    text = (run / "config.yaml").read_text()
    return Origin.of_run(text, asdict(TrainerState(**state)), run / "metrics.jsonl")


def test_the_front_matter_is_the_hubs(make_run):
    card = ModelCard(model_card(origin_of(make_run()), "adapter"))

    assert isinstance(card.data, ModelCardData)
    assert card.data.to_dict() == {
        "base_model": SMOL,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["red-teaming", "adaptive-stress-testing", "astra_accel", "not-for-all-audiences", "dpo"],
    }


def test_a_reader_learns_how_it_came_about(make_run):
    card = model_card(origin_of(make_run(), step=2, update=2, best_step=1), "adapter")

    assert "- step: 2\n" in card
    assert "- best_step: 1\n" in card
    assert "best_value" not in card
    assert "| reward/mean | -0.500 | 0.250 |" in card
    assert "| eval/reward/mean | 0.125 | 0.125 |" in card
    assert "| training | bundled | train |" in card
    assert "Intended use" in card
    assert "Forbidden use" in card
    assert "torch " in card
    assert NOT_EVALUATED in card
    settings = card.partition("```yaml\n")[2].partition("\n```")[0]
    assert yaml.safe_load(settings)["training"]["lr"] == 0.003


@pytest.mark.parametrize(
    ("path", "weights", "loads"),
    [
        ("embedded", "adapter", "AutoPeftModelForCausalLM.from_pretrained(folder)"),
        ("embedded", "full", "AutoModelForCausalLM.from_pretrained(folder)"),
        ("embedded", "merged", "AutoModelForCausalLM.from_pretrained(folder)"),
        ("tiny:gpt2", "adapter", 'PeftModel.from_pretrained(build_tiny("gpt2")[0], folder)'),
        ("tiny", "adapter", "PeftModel.from_pretrained(build_tiny()[0], folder)"),
    ],
)
def test_how_to_load_it_is_python(make_run, path, weights, loads):
    card = model_card(origin_of(make_run("--tester.path", path)), weights)

    code = card.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert loads in code


def test_a_model_that_is_on_no_hub_has_no_base_model(make_run, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: llama3.1\n---\n# Base\n")

    card = ModelCard(model_card(origin_of(make_run("--tester.path", str(tmp_path / "base"))), "adapter"))

    assert "base_model" not in card.data.to_dict()
    assert card.data.license == "llama3.1"
    assert "A LoRA adapter on base." in card.text


def test_a_base_whose_own_card_is_broken_names_no_license(make_run, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: [\n---\n# Base\n")

    card = ModelCard(model_card(origin_of(make_run("--tester.path", str(tmp_path / "base"))), "adapter"))

    assert "license" not in card.data.to_dict()


def test_folders_of_this_machine_stay_here(make_run, tmp_path):
    run = make_run("--tester.path", "/home/me/secret/model", "--prompts.test.source", "/home/me/secret/prompts.jsonl")

    card = model_card(origin_of(run), "adapter")

    assert "/home/me" not in card
    assert str(tmp_path) not in card
    assert "prompts.jsonl" in card


def test_nothing_in_a_configuration_ends_its_block(make_run):
    instruction = "Say:\n```\n</details>\n# heading\n````"
    run = make_run("--rollout.format", "chat", "--rollout.tester_instruction", instruction)

    card = model_card(origin_of(run), "adapter")

    block = card.partition("`````yaml\n")[2].partition("\n`````")[0]
    assert yaml.safe_load(block)["rollout"]["tester_instruction"] == instruction


def test_a_system_of_ones_own_has_a_card(tmp_path):
    card = ModelCard(model_card(Origin({"training": {"lr": 0.1}}), "other"))

    assert card.data.to_dict() == {
        "tags": ["red-teaming", "adaptive-stress-testing", "astra_accel", "not-for-all-audiences"]
    }
    assert "trained.safetensors" in card.text


def test_half_a_line_of_metrics_is_passed_over(make_run):
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.')

    assert first_and_last(run / "metrics.jsonl")["loss"] == (0.7, 0.4)
    assert first_and_last(run / "none.jsonl") == {}


def test_weights_are_known_by_their_files(make_run, tmp_path):
    assert weights_in(make_run() / "tester") == "adapter"
    (tmp_path / "config.json").write_text("{}")
    assert weights_in(tmp_path) == "full"
    assert weights_in(tmp_path / "run") == "other"


class TestEvaluation:
    """Twelve episodes of an evaluation, one of them successful for a kind of harm."""

    def figures(self):
        rows = [
            {
                "episode": episode,
                "turn": 1,
                "probe": "p",
                "response_score": episode / 11,
                "category/reward/th|reat": 0.9 if episode == 0 else 0.1,
            }
            for episode in range(12)
        ]
        return summarize(Nodes.from_rows(rows, 12), threshold=0.5, num_resamples=200)

    def test_the_figures_come_with_intervals(self, make_run):
        found = self.figures()
        card = model_card(origin_of(make_run()), "adapter", found)

        success = found["metrics"]["attack_success/any_turn"]
        assert f"| attack\\_success/any\\_turn | 0.500 ({success['low']:.3f} to {success['high']:.3f}) |" in card
        kind = found["metrics"]["category/reward/th|reat/attack_success/any_turn"]
        assert f"| reward | th\\|reat | 0.083 ({kind['low']:.3f} to {kind['high']:.3f}) |" in card
        assert NOT_EVALUATED not in card
        assert "12 held-out prompts, 12 turns" in card

    def test_the_hub_reads_them(self, make_run):
        card = ModelCard(model_card(origin_of(make_run()), "adapter", self.figures()))

        results = {result.metric_type: result for result in card.data.eval_results}
        assert results["attack_success/any_turn"].metric_value == 0.5
        assert results["attack_success/any_turn"].dataset_type == "bundled"
        assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()

    def test_what_was_edited_stays(self, make_run):
        origin = origin_of(make_run())
        edited = model_card(origin, "adapter").replace("# A tester for red-teaming", "# My tester")
        once = with_evaluation(edited, self.figures(), origin.config)
        twice = with_evaluation(once, self.figures(), origin.config)

        assert "# My tester" in twice
        assert twice == once
        assert once.partition(BEGIN)[0].partition("# My")[2] == edited.partition(BEGIN)[0].partition("# My")[2]
        assert once.partition(END)[2] == edited.partition(END)[2]

    def test_a_card_without_the_place_stays_as_it_is(self):
        assert with_evaluation("# Mine\n", self.figures(), {}) == "# Mine\n"

    def test_a_card_is_brought_up_to_date(self, make_run, evaluated, tmp_path):
        run, card = make_run(), tmp_path / "README.md"
        card.write_text(model_card(origin_of(run), "adapter"))
        before = card.read_text()
        update_card(card, run)
        assert card.read_text() == before
        evaluated(run)
        update_card(card, run)
        assert "12 held-out prompts, 168 turns" in card.read_text()
        update_card(tmp_path / "none.md", run)
        assert not (tmp_path / "none.md").exists()

    def test_a_run_is_asked_for_its_evaluation(self, make_run, evaluated):
        run = make_run()
        assert evaluation_of(run) is None
        evaluated(run)
        assert evaluation_of(run)["num_episodes"] == 12


def test_a_configuration_reads_back_from_its_card(make_run, tmp_path):
    card = model_card(origin_of(make_run("--training.lr", "1e-4")), "adapter")
    (tmp_path / "again.yaml").write_text(card.partition("```yaml\n")[2].partition("\n```")[0])

    assert RunConfiguration.load(tmp_path / "again.yaml").training.lr == 1e-4
