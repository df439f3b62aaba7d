"""Several processes and one upload."""

from __future__ import annotations

from pathlib import Path

import pytest

from astra_accel.distributed.collectives import RankError
from astra_accel.errors import SharingError
from tests.helpers.hub import USER, local_hub
from tests.helpers.processes import run_processes
from tests.helpers.runs import train_plain

pytestmark = pytest.mark.slow


def _train(folder: Path) -> str:
    try:
        train_plain(folder, training_steps=1, push_to_hub=True, hub_model_id="mine")
    except (SharingError, RankError) as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def test_one_process_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_hub(monkeypatch) as hub:
        assert run_processes(2, _train, tmp_path / "run", forked=False) == ["trained", "trained"]

        assert set(hub.files["model", f"{USER}/mine"]) == {"README.md", "trained.safetensors"}
        assert sum("repos/create" in request for request in hub.requests) == 1


def test_an_upload_that_can_not_be_ends_all_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_hub(monkeypatch) as hub:
        hub.role = "read"
        first, second = run_processes(2, _train, tmp_path / "run", forked=False)

        assert first.startswith(f"SharingError: the token of {USER} may only read")
        assert second.startswith("RankError")
        assert hub.writes == []
    assert not (tmp_path / "run").exists()
