# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Publishing adapters on the Hugging Face Hub.

`PeftModel` inherits its `push_to_hub` from transformers, which replaces the card of any adapter by one that names
neither PEFT nor the base model, so that nobody finds it. PEFT offers no place to change that for a method: the tuner
of a method never sees the `PeftModel` around it. So `PeftModel` gets a `push_to_hub` of its own here, which publishes
adapters of this package and leaves all others to the inherited one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from peft import PeftModel
from transformers import PreTrainedModel

from ..config import MultiTaskConfig
from ..models.image_processor import DenseImageProcessor
from .cards import base_of, config_of, make_card
from .merged_cards import make_merged_card, origin_of
from .record import TrainingRecord
from .weights import WEIGHTS


def publish(
    model: PeftModel | PreTrainedModel,
    repo_id: str,
    *,
    base_model: str | None = None,
    adapter: str | None = None,
    training: TrainingRecord | None = None,
    license: str = "apache-2.0",
    tags: Sequence[str] = (),
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Uploads the active adapter and its decoders, or what it was merged into, in one commit under a card of its own.

    A repository is made where there is none. A card that is there already is replaced: its scores are of other
    weights. After a failed upload the repository is as it was; the same call again sends only what had not arrived.

    Args:
        model: It carries an adapter of one of this package's methods, or is what `merge_and_unload` made of one.
        repo_id: `"user/name"`.
        base_model: Hub id of the encoder, where it was loaded from a folder. The adapter keeps it.
        adapter: Hub id of the adapter that a merged model was made of, for its card.
        training: What is known of the training of an adapter, for the card, and files to upload with it.
        license: License of the weights, as the Hub spells it.
        tags: Of the card, besides those that say what it is.
        private: Of a repository that is made; `None` for the default of its owner.
        token: Of a user who may write there; `None` for the one that `hf auth login` left.
        revision: The branch, which is made where there is none; `None` for `main`.
        create_pr: Open a pull request in place of changing the branch.
        commit_message, commit_description: Of the commit.

    Raises:
        TypeError: The adapter is of none of this package's methods, or the model is not made of one.
        ValueError: The encoder is not known or a folder, a repository that is to be private is public, or there is a
            `training` of a merged model.
        ConnectionError: The upload broke off.
        HfHubHTTPError: The Hub refused, e.g. for the lack of a token.
    """
    is_adapter = isinstance(model, PeftModel)
    card_for: Callable[..., ModelCard]
    with TemporaryDirectory() as temporary:
        if isinstance(model, PeftModel):
            name = model.active_adapter
            config = config_of(model, name)
            if base_model is not None:
                config.base_model_name_or_path = base_model
            folder = save_adapter(model, name, Path(temporary))
            base_of(config)  # its errors come before anything is changed on the Hub
            size = (folder / WEIGHTS).stat().st_size
            card_for = partial(make_card, model, name, file_size=size, training=training, license=license, tags=tags)
        else:
            if training is not None:
                raise ValueError(
                    "Scores and records are of the adapter: publish that with `training`, and name it here."
                )
            folder = Path(temporary)
            card_for = partial(make_merged_card, model, origin_of(model, base_model, adapter), license, tags)
            model.save_pretrained(folder)
        api = HfApi(token=token)
        repo_id = _open_repository(api, repo_id, private, revision)
        card_for(repo_id=repo_id).save(folder / "README.md")  # in place of PEFT's own card
        files = {file.name: file for file in folder.iterdir()} | dict(training.files if training else {})
        return _upload(
            api,
            repo_id,
            files,
            commit_message=commit_message or ("Upload adapter" if is_adapter else "Upload merged model"),
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def save_adapter(model: PeftModel, adapter_name: str, folder: Path) -> Path:
    """Saves one adapter in or below `folder`, and returns where its files are."""
    # There is no vocabulary to look up on the Hub.
    model.save_pretrained(str(folder), selected_adapters=[adapter_name], save_embedding_layers=False)
    saved = folder if adapter_name == "default" else folder / adapter_name
    DenseImageProcessor.save_for(model, saved)
    return saved


def _open_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    """Makes the repository and the branch where they are missing, and returns the repository's full name."""
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            f"'{repo_id}' exists and is public, and the upload was to be private. Make it private in its settings or "
            "choose another name; nothing was uploaded."
        )
    if revision is not None and not revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def _upload(api: HfApi, repo_id: str, files: dict[str, Path], **commit: Any) -> CommitInfo:
    # One commit, unlike `upload_folder`, so that no revision is half a checkpoint.
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file)) for name, file in files.items()]
    try:
        return api.create_commit(repo_id, operations, **commit)
    except RuntimeError as error:  # how huggingface_hub reports a large file that did not arrive
        raise ConnectionError(
            f"The upload to '{repo_id}' broke off ({error}). The repository is as it was. Run the same again: what "
            "has arrived is not sent twice."
        ) from error


_inherited = PeftModel.push_to_hub


def push_to_hub(self: PeftModel, repo_id: str, **kwargs: Any) -> str:
    """Publishes an adapter of this package as `peft_polyhistor.publish` does, and any other as PEFT does.

    It takes the arguments of both. `max_shard_size` has no effect, as in PEFT: an adapter is one file. `None` stands
    for the default.
    """
    if not isinstance(self.peft_config[self.active_adapter], MultiTaskConfig):
        return _inherited(self, repo_id, **kwargs)
    given = {name: value for name, value in kwargs.items() if value is not None and name != "max_shard_size"}
    return publish(self, repo_id, **given)


PeftModel.push_to_hub = push_to_hub  # type: ignore[assignment, method-assign]
