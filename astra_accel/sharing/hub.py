"""Uploads to the Hugging Face hub.

Everything that can be checked beforehand is checked: whether the user is logged in and may write, whether the names are
valid, and whether an existing repository is as private as intended. Nothing is uploaded before that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from astra_accel.config import check_repository
from astra_accel.errors import SharingError
from astra_accel.sharing.rollouts import DATA

RepositoryType = Literal["model", "dataset"]


@dataclass(frozen=True)
class Repository:
    """A repository of the hub to upload to.

    Attributes:
        name: ``owner/name``; without an owner, in the user's own namespace.
        type: model or dataset.
        private: whether only its owner may see it.
    """

    name: str
    type: RepositoryType = "model"
    private: bool = True


class Hub:
    """The hub as the logged-in user sees it.

    Args:
        api: the ``huggingface_hub`` API; None is the default one, with the token of ``hf auth login`` or ``HF_TOKEN``.
    """

    def __init__(self, api: HfApi | None = None) -> None:
        self.api = HfApi() if api is None else api

    def check(self, repositories: Sequence[Repository]) -> list[Repository]:
        """Check that all can be uploaded to; returns the repositories with their full names.

        Raises:
            ConfigurationError: a name is not valid for a repository.
            SharingError: the user is not logged in, is offline or may not write there, or a repository that should be
                private is already public.
        """
        for repository in repositories:
            check_repository(repository.name, f"the {repository.type}'s name on the hub")
        with self._explained("logging in"):
            user = self.api.whoami()
        _check_token(user)
        named = [self._with_owner(repository, user) for repository in repositories]
        for repository in named:
            self._check_visibility(repository)
        return named

    def upload(self, folder: Path, repository: Repository, message: str) -> str:
        """Upload a folder and return its address. The repository must be one that :meth:`check` returned.

        In an existing data set, files that it no longer has are deleted, since patterns would match them; other files
        stay.

        Raises:
            SharingError: the upload failed; says how far it got.
        """
        with self._explained(f"making {repository.name}"):
            address = self.api.create_repo(
                repository.name, repo_type=repository.type, private=repository.private, exist_ok=True
            )
        with self._explained(f"uploading {folder} to {repository.name} (what was uploaded stays there)"):
            self.api.upload_folder(
                repo_id=repository.name,
                repo_type=repository.type,
                folder_path=folder,
                commit_message=message,
                delete_patterns=f"{DATA}/*" if repository.type == "dataset" else None,
            )
        return str(address)

    def license_of(self, model: str) -> str | None:
        """The licence that a model on the hub names; None if it names none, or can't be accessed."""
        try:
            card = self.api.model_info(model).card_data
        except HTTPError:
            return None
        return None if card is None else card.get("license")

    def _with_owner(self, repository: Repository, user: dict[str, Any]) -> Repository:
        owner, _, name = repository.name.rpartition("/")
        owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
        if owner and owner not in owners:
            raise SharingError(
                f"{repository.name} can't be uploaded to: you are logged in as {user['name']}, expected an owner among "
                f"{', '.join(owners)}"
            )
        return Repository(f"{owner or user['name']}/{name}", repository.type, repository.private)

    def _check_visibility(self, repository: Repository) -> None:
        with self._explained(f"looking for {repository.name}"):
            try:
                there = self.api.repo_info(repository.name, repo_type=repository.type)
            except RepositoryNotFoundError:
                return
        if repository.private and not there.private:
            raise SharingError(
                f"the {repository.type} {repository.name} already exists and is public, but was to be private; choose "
                f"another name, make it private on its page, or ask for public (--public, training.hub_private false)"
            )

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn errors of the hub's library into ours, which say what to do."""
        try:
            yield
        except LocalTokenNotFoundError as error:
            raise SharingError(
                "not logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN to a token that may write"
            ) from error
        except OfflineModeIsEnabled as error:
            raise SharingError(f"{doing}: HF_HUB_OFFLINE is set, so the hub can't be reached; unset it") from error
        except HfHubHTTPError as error:
            raise SharingError(f"{doing}: the hub at {self.api.endpoint} refused: {error}") from error
        except HTTPError as error:
            raise SharingError(f"{doing}: the hub at {self.api.endpoint} can't be reached: {error}") from error


def _check_token(user: dict[str, Any]) -> None:
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise SharingError(
            f"the token of {user['name']} may only read; expected one that may write (https://huggingface.co/settings/tokens)"
        )
