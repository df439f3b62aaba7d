"""What is sent to a hub, and what is found out before anything is. The hub is a server on this machine."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import DatasetCard, HfApi, ModelCard

from astra_accel.config import TrainingConfiguration
from astra_accel.errors import ConfigurationError, SharingError
from astra_accel.sharing.hub import Hub, Repository
from astra_accel.sharing.push import check_push, push, push_tester
from tests.helpers.hub import LAB, USER

MODEL, DATASET = Repository(f"{USER}/model"), Repository(f"{LAB}/data", "dataset")


@pytest.fixture
def run(make_run):
    """A run with a tester of a few bytes."""
    folder = make_run()
    (folder / "tester" / "adapter_model.bin").write_bytes(b"weights")
    (folder / "tester" / "README.md").write_text("# Mine\n")
    return folder


class TestPush:
    def test_a_tester_and_its_conversations(self, hub, run, tmp_path):
        addresses = push(run, model=MODEL, dataset=DATASET)

        assert addresses == [f"{hub.address}/{USER}/model", f"{hub.address}/datasets/{LAB}/data"]
        assert hub.private == {("model", f"{USER}/model"): True, ("dataset", f"{LAB}/data"): True}
        files = hub.files["model", f"{USER}/model"]
        assert set(files) == {"adapter_config.json", "adapter_model.bin", "README.md"}
        assert files["adapter_model.bin"] == b"weights"
        there = hub.download("dataset", f"{LAB}/data", tmp_path / "there")
        assert sorted(path.name for path in there.iterdir()) == ["README.md", "data"]
        assert DatasetCard.load(there / "README.md").data.configs[0]["config_name"] == "rollouts"

    def test_public_is_asked_for(self, hub, run):
        push(run, model=Repository(f"{USER}/model", private=False))

        assert hub.private == {("model", f"{USER}/model"): False}

    def test_a_name_without_an_owner_is_ones_own(self, hub, run):
        push(run, model=Repository("model"))

        assert list(hub.private) == [("model", f"{USER}/model")]

    def test_the_adapter_names_its_base_by_the_hubs_name(self, hub, run):
        push(run, model=MODEL)

        sent = json.loads(hub.files["model", MODEL.name]["adapter_config.json"])
        assert sent["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        own = json.loads((run / "tester" / "adapter_config.json").read_text())
        assert own["base_model_name_or_path"] == "/home/me/cache/smol"
        assert [path.name for path in run.glob(".*")] == []

    def test_a_base_that_is_on_no_hub_keeps_its_name_alone(self, hub, make_run):
        run = make_run("--tester.path", "/home/me/models/mine")
        (run / "tester" / "adapter_model.bin").write_bytes(b"weights")

        push(run, model=MODEL)

        sent = json.loads(hub.files["model", MODEL.name]["adapter_config.json"])
        assert sent["base_model_name_or_path"] == "smol"

    def test_the_card_has_what_was_found_since(self, hub, run, evaluated):
        evaluated(run)
        from astra_accel.sharing.model_card import Origin, model_card

        origin = Origin.of_run((run / "config.yaml").read_text(), {}, run / "metrics.jsonl")
        (run / "tester" / "README.md").write_text(model_card(origin, "adapter"))

        push(run, model=MODEL)

        card = ModelCard(hub.files["model", MODEL.name]["README.md"].decode())
        assert "12 held-out prompts" in card.text
        assert card.data.eval_results
        assert "has not been evaluated" in (run / "tester" / "README.md").read_text()

    def test_the_licence_of_a_base_on_the_hub_is_looked_up(self, hub, make_run):
        hub.cards["someone/base"] = {"license": "llama3.1"}
        run = make_run("--tester.path", "someone/base")
        (run / "tester" / "adapter_model.bin").write_bytes(b"weights")
        (run / "tester" / "README.md").write_text("---\ntags: [a]\n---\n# Mine\n")

        push(run, model=MODEL)

        card = ModelCard(hub.files["model", MODEL.name]["README.md"].decode())
        assert card.data.to_dict() == {"tags": ["a"], "license": "llama3.1"}

    def test_files_that_a_data_set_has_no_more_are_deleted(self, hub, run):
        push(run, dataset=DATASET)
        hub.files["dataset", DATASET.name]["data/rollouts-00009.parquet"] = b"old"
        hub.files["dataset", DATASET.name]["notes.txt"] = b"mine"

        push(run, dataset=DATASET)

        assert set(hub.files["dataset", DATASET.name]) == {"README.md", "data/rollouts-00000.parquet", "notes.txt"}


class TestBeforeAnythingIsUploaded:
    def test_one_has_to_be_logged_in(self, hub, run, monkeypatch, tmp_path):
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))

        with pytest.raises(SharingError, match="not logged in to the Hugging Face hub: run `hf auth login`"):
            push(run, model=MODEL)

        assert hub.requests == []

    def test_a_token_that_is_no_good(self, hub, run, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_of_another")

        with pytest.raises(SharingError, match=rf"logging in: the hub at {hub.address} refused: .*nvalid"):
            push(run, model=MODEL)

        assert hub.writes == []

    def test_a_token_that_may_only_read(self, hub, run):
        hub.role = "read"

        with pytest.raises(SharingError, match=f"the token of {USER} may only read; expected one that may write"):
            push(run, model=MODEL)

        assert hub.writes == []

    def test_offline(self, hub, run, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

        with pytest.raises(SharingError, match="HF_HUB_OFFLINE is set"):
            push(run, model=MODEL)

        assert hub.requests == []

    def test_nobody_there(self, run, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        nobody = Hub(HfApi(endpoint="http://127.0.0.1:9", token="hf_of_a_test"))

        with pytest.raises(SharingError, match=r"logging in: the hub at http://127\.0\.0\.1:9 can't be reached"):
            push(run, model=MODEL, hub=nobody)

    def test_anothers_namespace(self, hub, run):
        with pytest.raises(SharingError, match=f"you are logged in as {USER}, expected an owner among {USER}, {LAB}"):
            push(run, model=MODEL, dataset=Repository("stranger/data", "dataset"))

        assert hub.writes == []

    def test_a_public_repository_gets_nothing_private(self, hub, run):
        hub.private["dataset", DATASET.name] = False

        with pytest.raises(SharingError, match=f"the dataset {DATASET.name} already exists and is public"):
            push(run, model=MODEL, dataset=DATASET)

        assert hub.writes == []

    def test_a_name_that_there_can_not_be(self, hub, run):
        with pytest.raises(ConfigurationError, match="the model's name on the hub is 'a/b/c', expected owner/name"):
            push(run, model=Repository("a/b/c"))

        assert hub.requests == []

    def test_a_run_without_a_tester(self, hub, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no tester"):
            push(tmp_path, model=MODEL)

        assert hub.requests == []

    def test_a_run_without_conversations(self, hub, run):
        for file in (run / "rollouts").iterdir():
            file.unlink()

        with pytest.raises(FileNotFoundError, match="has neither rollouts"):
            push(run, model=MODEL, dataset=DATASET)

        assert hub.writes == []


class TestTraining:
    """What a trainer asks at the beginning and at the end."""

    def config(self, **settings):
        return TrainingConfiguration(push_to_hub=True, hub_model_id=MODEL.name, **settings)

    def test_nothing_is_asked_unless_it_is_to_be_uploaded(self, hub, run):
        check_push(TrainingConfiguration())
        assert push_tester(TrainingConfiguration(), run) == []
        assert hub.requests == []

    def test_what_can_not_be_is_known_at_the_beginning(self, hub):
        check_push(self.config())
        hub.role = "read"

        with pytest.raises(SharingError, match="may only read"):
            check_push(self.config())

        assert hub.writes == []

    def test_private_unless_told_otherwise(self, hub, run):
        assert push_tester(self.config(), run) == [f"{hub.address}/{MODEL.name}"]
        assert hub.private == {("model", MODEL.name): True}

    def test_what_fails_at_the_end_says_how_to_go_on(self, hub, run):
        hub.failing = "/commit/"

        with pytest.raises(SharingError, match=rf"not for you.*astra-accel push {run} --model {MODEL.name}$"):
            push_tester(self.config(), run)
