# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Publishes adapters on the Hugging Face Hub.

`PeftModel` inherits its `push_to_hub` from transformers, which replaces the card of an adapter by a card that names
neither PEFT nor the base model. PEFT has no extension point for it, because a tuner has no access to the `PeftModel`
around it. So this module gives `PeftModel` its own `push_to_hub`, which publishes adapters of this package, and calls
the inherited method for all others.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from transformers import PreTrainedModel

from ..checks import check_list
from ..models.image_processor import FILE as PROCESSOR
from ..models.image_processor import DenseImageProcessor, check_processor
from .cards import base_of, config_of, make_card
from .merged_cards import Origin, make_merged_card, origin_of
from .record import PREVIEW, RESULTS, TRAINING, TrainingRecord
from .sources import TRANSPORT_ERROR
from .weights import CONFIG, WEIGHTS


# Files that `load` prefers to those of a merged model, or that describe the weights beside them.
OWN_FILES = {CONFIG, WEIGHTS, PROCESSOR, PREVIEW, RESULTS, TRAINING}


def publish(
    model: PeftModel | PreTrainedModel,
    repo_id: str,
    *,
    base_model: str | None = None,
    adapter: str | None = None,
    training: TrainingRecord | None = None,
    processor: DenseImageProcessor | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Uploads the active adapter with its decoders, or a merged model, and its model card in one commit.

    A missing repository is created. In an existing one, the card is replaced, because its scores belong to other
    weights. For the same reason an adapter, an image processor and the record of a training are deleted there if the
    upload has no such files; all other files stay. After a failed upload the repository is unchanged, and the same
    call uploads only the missing files.

    Args:
        model: A model with an adapter of a method of this package, or a result of `merge_and_unload`.
        repo_id: `"user/name"`.
        base_model: Hub id of the encoder, if it was loaded from a folder. The config of the model records it.
        adapter: Hub id of the adapter of a merged model, for its card.
        training: Record of the training of an adapter, for the card, with files to upload.
        processor: Image processor of a dense model, if it is not that of `DenseImageProcessor.from_model`.
        license: License of the weights, in the spelling of the Hub; `None` for Apache-2.0. A merged model has no
            default, because it contains the weights of its encoder.
        tags: Further tags of the card.
        private: Whether a created repository is private; `None` for the default of its owner.
        token: Token with write access; `None` uses that of `hf auth login`.
        revision: The branch, which is created if missing, and which the card loads; `None` for `main`.
        create_pr: Open a pull request to the branch, which must exist, instead of changing it.
        commit_message, commit_description: Message and description of the commit.

    Raises:
        TypeError: The adapter is not of a method of this package, the model is not a result of `merge_and_unload`,
            `processor` is of another class, or `tags` is a string.
        ValueError: The encoder is unknown or a folder, the repository is public although `private` is set, or for a
            merged model `training` is given or `license` is not.
        FileNotFoundError: A file of `training` does not exist.
        ConnectionError: The Hub cannot be reached, or the upload was interrupted.
        HfHubHTTPError: The Hub refused the upload, e.g. without a token.
    """
    check_list("tags", tags)
    is_adapter = isinstance(model, PeftModel)
    card_for: Callable[..., ModelCard]
    with TemporaryDirectory() as temporary:
        if isinstance(model, PeftModel):
            name = model.active_adapter
            config = config_of(model, name)
            if base_model not in (None, config.base_model_name_or_path):
                config.base_model_name_or_path, config.revision = base_model, None
            folder = save_adapter(model, name, Path(temporary))
            base_of(config)  # raises its errors before anything changes on the Hub
            size = (folder / WEIGHTS).stat().st_size
            card_for = partial(make_card, model, name, file_size=size, training=training)
        else:
            origin = origin_of(model, base_model, adapter)
            _check_merged(origin, training, license)
            if not origin.base.is_embedded:
                model.config.merged_from = {**model.config.merged_from, "base_model": origin.base.name}
            folder = Path(temporary)
            card_for = partial(make_merged_card, model, origin)
            model.save_pretrained(folder)
        _save_processor(model, processor, folder)
        given = dict(training.files if training else {})
        if missing := [str(file) for file in given.values() if not Path(file).is_file()]:
            raise FileNotFoundError(f"{missing} not found, which `training.files` names. Nothing was uploaded.")
        api = HfApi(token=token)
        is_branch = revision not in (None, "main") and not create_pr and not revision.startswith("refs/pr/")
        branch = revision if is_branch else None
        with _before_the_upload(api):
            repo_id = _open_repository(api, repo_id, private, branch)
        card = card_for(repo_id=repo_id, revision=branch, license=license or "apache-2.0", tags=tags)
        card.save(folder / "README.md")  # replaces PEFT's own card
        files = {file.name: file for file in folder.iterdir()} | given
        return _upload(
            api,
            repo_id,
            files,
            commit_message=commit_message or ("Upload adapter" if is_adapter else "Upload merged model"),
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def _check_merged(origin: Origin, training: TrainingRecord | None, license: str | None) -> None:
    """Raises ValueError for arguments that a merged model does not have, and for one that it lacks."""
    if training is not None:
        raise ValueError("`training` is for adapters. Publish the adapter with it, and name that as `adapter` here.")
    if license is None:
        raise ValueError(
            f"A merged model contains the weights of its encoder '{origin.base.name}', so their licence holds for it "
            "too. Look it up, and give it in the spelling of the Hub, e.g. license='apache-2.0'."
        )


def _save_processor(model: PeftModel | PreTrainedModel, processor: DenseImageProcessor | None, folder: Path) -> None:
    if processor is None:
        DenseImageProcessor.save_for(model, folder)
    else:
        check_processor(processor)
        processor.save_pretrained(str(folder))


def save_adapter(model: PeftModel, adapter_name: str, folder: Path) -> Path:
    """Saves one adapter in or below `folder`, and returns the folder of its files."""
    # `save_embedding_layers` would look up a vocabulary on the Hub.
    model.save_pretrained(str(folder), selected_adapters=[adapter_name], save_embedding_layers=False)
    return folder if adapter_name == "default" else folder / adapter_name


def _open_repository(api: HfApi, repo_id: str, private: bool | None, branch: str | None) -> str:
    """Creates repository and branch if they are missing, and returns the full name of the repository."""
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 401:
            error.append_to_message(" Log in by `hf auth login`, or give token=... of a token with write access.")
        raise
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            f"'{repo_id}' exists and is public, and the upload was to be private. Make it private in its settings or "
            "choose another name. Nothing was uploaded."
        )
    if branch is not None:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    return repo_id


@contextmanager
def _before_the_upload(api: HfApi) -> Iterator[None]:
    """Raises ConnectionError for a connection that fails in this block."""
    try:
        yield
    except HfHubHTTPError:
        raise
    except TRANSPORT_ERROR as error:
        raise ConnectionError(
            f"The Hub at {api.endpoint} cannot be reached ({error}). Nothing was uploaded. Run the same again with a "
            "connection to it; the environment variable HF_ENDPOINT names another one."
        ) from error


def _upload(api: HfApi, repo_id: str, files: dict[str, Path], revision: str | None, **commit: Any) -> CommitInfo:
    """Uploads files, and deletes those of `OWN_FILES` that belong to an earlier checkpoint."""
    # One commit, unlike `upload_folder`, so that no revision holds an incomplete or a mixed checkpoint.
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file)) for name, file in files.items()]
    with _before_the_upload(api):
        present = OWN_FILES.intersection(api.list_repo_files(repo_id, revision=revision))
    deleted = [CommitOperationDelete(path_in_repo=name) for name in sorted(present - files.keys())]
    try:
        return api.create_commit(repo_id, [*added, *deleted], revision=revision, **commit)
    except RuntimeError as error:  # huggingface_hub raises it if the upload of a large file fails
        raise ConnectionError(
            f"The upload to '{repo_id}' broke off ({error}). The repository is unchanged. Run the same again: "
            "complete files are not uploaded twice."
        ) from error
    except HfHubHTTPError:
        raise
    except TRANSPORT_ERROR as error:
        raise ConnectionError(
            f"The connection to {api.endpoint} broke off ({error}) before it was known whether the commit to "
            f"'{repo_id}' succeeded. The repository has all of it or nothing. Look there, or run the same again."
        ) from error
