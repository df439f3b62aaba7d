"""Makes the folders to upload from a run: without details of this machine, with figures added since."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from astra_accel.config import TrainingConfiguration
from astra_accel.errors import SharingError
from astra_accel.evaluation.tester import ADAPTER_CONFIG, find_tester
from astra_accel.files.atomic import README, write_atomically
from astra_accel.files.run_folder import CONFIG, TESTER
from astra_accel.sharing.base_model import hub_id
from astra_accel.sharing.dataset_card import export_dataset
from astra_accel.sharing.evaluated import update_card
from astra_accel.sharing.hub import Hub, Repository
from astra_accel.sharing.markdown import without_place


def check_push(config: TrainingConfiguration, hub: Hub | None = None) -> None:
    """Check that the tester of a run can be uploaded at its end, if the run is to do so.

    Raises:
        ConfigurationError: it can't be; see :meth:`~astra_accel.sharing.hub.Hub.check`.
    """
    if config.push_to_hub:
        (hub or Hub()).check([_repository(config)])


def push_tester(config: TrainingConfiguration, run: Path, hub: Hub | None = None) -> list[str]:
    """Upload the tester of a run that has ended, if the run is to do so; returns the addresses.

    Raises:
        SharingError: the upload failed; says where the tester is, and how to upload it later.
    """
    if not config.push_to_hub:
        return []
    hub, repository = hub or Hub(), _repository(config)
    try:
        (named,) = hub.check([repository])
        return [_upload_tester(run / TESTER, run, named, hub)]
    except SharingError as error:
        raise SharingError(
            f"{error}. The tester is in {run / TESTER}; to upload it later: "
            f"astra-accel push {run} --model {repository.name}{'' if repository.private else ' --public'}"
        ) from error


def push(
    run: Path, *, model: Repository | None = None, dataset: Repository | None = None, hub: Hub | None = None
) -> list[str]:
    """Upload a run's tester, its conversations, or both; returns their addresses.

    Args:
        run: a run that has ended; for the tester alone, its folder suffices.
        model, dataset: the repositories to upload to; None leaves one out.
        hub: the hub to upload to; None is the Hugging Face hub.

    Raises:
        FileNotFoundError: the run lacks something to upload.
        ConfigurationError: see :class:`~astra_accel.sharing.hub.Hub`.
    """
    hub = hub or Hub()
    tester = None if model is None else find_tester(run)
    asked = hub.check([repository for repository in (model, dataset) if repository is not None])
    named = {repository.type: repository for repository in asked}
    addresses = []
    with tempfile.TemporaryDirectory() as scratch:
        conversations = Path(scratch) / "dataset"
        if "dataset" in named:  # before the first upload, so that nothing is uploaded if it fails
            export_dataset(run, conversations)
        if tester is not None:
            addresses.append(_upload_tester(tester, run, named["model"], hub))
        if "dataset" in named:
            addresses.append(hub.upload(conversations, named["dataset"], "Conversations of astra_accel"))
    return addresses


def _upload_tester(tester: Path, run: Path, repository: Repository, hub: Hub) -> str:
    with as_uploaded(tester, run, hub) as folder:
        return hub.upload(folder, repository, "Tester of astra_accel")


@contextmanager
def as_uploaded(tester: Path, run: Path, hub: Hub) -> Iterator[Path]:
    """A copy of a tester's folder for the hub, next to it; big files take no extra space.

    Its card has the figures of the run's evaluation, if any, and the base model's licence; its adapter refers to its
    base by the hub's name, not by a folder of this machine.
    """
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8")) if (run / CONFIG).is_file() else {}
    base = hub_id(config.get("tester"))
    with _scratch(tester.parent) as scratch:
        folder = Path(scratch) / "tester"
        shutil.copytree(tester, folder, copy_function=_link)
        if (folder / ADAPTER_CONFIG).is_file():
            adapter = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            adapter["base_model_name_or_path"] = base or without_place(adapter.get("base_model_name_or_path") or "")
            write_atomically(folder / ADAPTER_CONFIG, json.dumps(adapter, indent=2) + "\n")
        update_card(folder / README, run)
        if (folder / README).is_file():
            card = (folder / README).read_text(encoding="utf-8")
            write_atomically(folder / README, _with_license(card, base, hub))
        yield folder


def _scratch(beside: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder: where files can be hard-linked, or elsewhere if nothing can be written there."""
    try:
        return tempfile.TemporaryDirectory(prefix=".upload-", dir=beside)
    except OSError:
        return tempfile.TemporaryDirectory(prefix="upload-")


def _with_license(card: str, base: str | None, hub: Hub) -> str:
    loaded = ModelCard(card)
    if base is None or loaded.data.get("license") is not None:
        return card
    license_name = hub.license_of(base)
    if license_name is None:
        return card
    loaded.data["license"] = license_name
    return str(loaded)


def _link(source: str, target: str) -> str:
    """Hard-link a file (rewritten files become new ones), or copy it where links aren't possible."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _repository(config: TrainingConfiguration) -> Repository:
    assert config.hub_model_id is not None  # the configuration rejects push_to_hub without it
    return Repository(config.hub_model_id, "model", config.hub_private)
