# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads a published or saved dense model in one call: encoder, decoders and adapters."""

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import device, nn
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..checks import DECODERS
from ..config import MultiTaskConfig
from ..models.encoder import embedded_name, load_encoder
from ..models.image_processor import FILE as PROCESSOR
from ..models.multitask import MultiTaskDenseModel
from ..models.multitask_config import MultiTaskDenseConfig
from ..registry import METHODS
from ..tasks import declare_tasks
from .cards import base_of
from .sources import TRANSPORT_ERROR
from .weights import CONFIG, WEIGHTS, adapter_shapes, difference, read_shapes, without_memory


DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only")


def load(
    name: str | Path,
    *,
    encoder: nn.Module | str | Path | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    is_trainable: bool = False,
    **kwargs: Any,
) -> PeftModel | MultiTaskDenseModel:
    """Loads a dense model with its frozen encoder, its decoders and its adapters, ready to predict.

    A checkpoint without adapters, e.g. of a merged model, loads as a `MultiTaskDenseModel`. Downloaded checkpoints
    load again without a network. Weights are read from safetensors only.

    Args:
        name: `"user/name"` on the Hub, or a folder.
        encoder: Replaces the encoder that the checkpoint names: a folder, a Hub id, or a model. A model is adapted in
            place, so each checkpoint needs a model of its own.
        revision: A branch, tag or commit of a repository on the Hub.
        token: Token for private repositories; `None` uses that of `hf auth login`.
        is_trainable: Whether adapters and decoders are trainable, or all of a checkpoint without adapters; otherwise
            they are frozen.
        **kwargs: Options for the downloads of checkpoint and encoder: `cache_dir`, `force_download`,
            `local_files_only`.

    Raises:
        FileNotFoundError: The folder, repository, revision, a file or the encoder does not exist.
        ValueError: `name` is empty, or a folder with a `revision`. The checkpoint is damaged, is not a dense model of
            this package, has an unknown encoder, or does not fit the encoder or the registered tasks. No memory beyond
            the encoder and the file is allocated before.
        TypeError: An option is unknown.
    """
    options = {"revision": revision, "token": token, **kwargs}
    return load_with_folder(name, encoder=encoder, is_trainable=is_trainable, **options)[0]


def load_with_folder(
    name: str | Path, *, encoder: nn.Module | str | Path | None = None, is_trainable: bool = False, **options: Any
) -> tuple[PeftModel | MultiTaskDenseModel, Path]:
    """Loads a model with the arguments and errors of `load`; also returns the folder of its checkpoint."""
    unknown = [option for option in options if option not in ("revision", "token", *DOWNLOAD_OPTIONS)]
    if unknown:
        raise TypeError(f"`load` has no options {unknown}; options of downloads are {list(DOWNLOAD_OPTIONS)}.")
    folder = _find_checkpoint(str(name), **options)
    if not (folder / CONFIG).is_file():
        if encoder is not None:
            raise ValueError(f"'{name}' is a complete model with its own encoder. Leave `encoder` out.")
        complete = _load_dense(folder, str(name)).requires_grad_(is_trainable)
        if not Path(os.path.expanduser(name)).is_dir():  # the folder is that of a cache
            for part in (complete, complete.config, complete.encoder):
                part.name_or_path = str(name)
            complete.encoder.revision = options.get("revision")
        return complete, folder
    is_given = encoder is not None
    config, decoder_settings = _read_config(folder, str(name))
    _check_single(folder, str(name), config)
    try:
        shapes = read_shapes(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(_damage(folder / WEIGHTS, str(name), error)) from error
    if not isinstance(encoder, nn.Module):
        options.pop("revision", None)  # the revision of the adapter
        encoder = _load_encoder(config, encoder, str(name), **options)
    # An adapter may have more tasks than there are decoders.
    tasks = [task for task in config.tasks if any(f"decoders.heads.{task}." in key for key in shapes)]
    config.inference_mode = not is_trainable
    try:
        declare_tasks(decoder_settings.pop("tasks", []))
        with device("meta"):
            shell = MultiTaskDenseModel.from_encoder(without_memory(encoder), tasks, **decoder_settings)
        wrong = difference(shapes, adapter_shapes(shell, config))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"'{name}' describes a model that cannot be built: {error}") from error
    if wrong:
        raise ValueError(
            f"'{name}' does not fit a model with its tasks {config.tasks} and encoder {type(encoder).__name__}: "
            f"{wrong}. Give the encoder it was trained on, and register its tasks as in its training."
        )
    dense = MultiTaskDenseModel.from_encoder(encoder, tasks, **decoder_settings)
    source = getattr(encoder, "name_or_path", None)
    model = PeftModel(dense, config)  # compares the encoder with that of the config
    if is_given and source is not None:
        own = model.peft_config["default"]
        own.base_model_name_or_path = None if embedded_name(source) else source or None
        own.revision = getattr(encoder, "revision", None)
    model.load_adapter(str(folder), "default", is_trainable=is_trainable)
    return model, folder


def _load_dense(folder: Path, name: str) -> MultiTaskDenseModel:
    try:
        return MultiTaskDenseModel.from_pretrained(folder)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"'{name}' describes a model that cannot be built: {error}") from error


def _is_dense(folder: Path, name: str) -> bool:
    """Tells whether a folder holds a dense model without adapters."""
    return not (folder / CONFIG).is_file() and _has_dense_config(folder, name)


def _has_dense_config(folder: Path, name: str) -> bool:
    file = folder / CONFIG_NAME
    if not file.is_file():
        return False
    try:
        model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(_damage(file, name, error)) from error
    return model_type == MultiTaskDenseConfig.model_type


def _check_single(folder: Path, name: str, config: MultiTaskConfig) -> None:
    """Raises ValueError if a dense model lies beside an adapter that was not made for it."""
    base = config.base_model_name_or_path or ""
    is_base = base == name or (base and Path(base).is_dir() and Path(base).resolve() == folder.resolve())
    if not is_base and _has_dense_config(folder, name):
        raise ValueError(
            f"'{name}' holds an adapter ({CONFIG}) and a model without adapters ({CONFIG_NAME}), and either may be "
            "meant. Remove the files of one of them, or save them into places of their own."
        )


def _find_checkpoint(name: str, revision: str | None = None, token: str | bool | None = None, **kwargs: Any) -> Path:
    """Returns the folder of a checkpoint, and downloads it if it is on the Hub."""
    if not name:
        raise ValueError("The name of the checkpoint is empty. Give a folder, or a Hub repository as 'user/name'.")
    if Path(os.path.expanduser(name)).is_dir():
        folder = Path(os.path.expanduser(name))
        if revision is not None:
            raise ValueError(
                f"Got revision={revision!r} for '{name}', which is a folder; only a repository on the Hub has "
                "revisions. Leave the revision out, or run where no folder has this name."
            )
    elif name.startswith(("/", ".", "~")) or name.count("/") != 1:
        beside = _find_adapters(Path(os.path.expanduser(name)).parent)
        hint = f" Beside it are the checkpoints {', '.join(beside)}." if beside else ""
        raise FileNotFoundError(
            f"There is no folder '{name}'.{hint} Give a folder, or a Hub repository as 'user/name'."
        )
    else:
        folder = _download(name, [CONFIG, WEIGHTS, CONFIG_NAME, PROCESSOR], revision, token, **kwargs)
        if _is_dense(folder, name):
            files = [CONFIG_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "model-*-of-*.safetensors", PROCESSOR]
            folder = _download(name, files, revision, token, **kwargs)
        if not (folder / PROCESSOR).is_file() and _is_unknown(name, PROCESSOR, folder.name, token, **kwargs):
            warnings.warn(
                f"The cache does not hold {PROCESSOR} of '{name}', and the Hub did not say whether there is one, "
                "which a MultiTaskPredictor would use. Load it once with access to the Hub, or give the predictor a "
                "`processor`.",
                stacklevel=4,
            )
    is_sharded = (folder / SAFE_WEIGHTS_INDEX_NAME).is_file()
    weights = SAFE_WEIGHTS_INDEX_NAME if is_sharded else SAFE_WEIGHTS_NAME
    files = [CONFIG_NAME, weights] if _is_dense(folder, name) else [CONFIG, WEIGHTS]
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        is_folder = Path(os.path.expanduser(name)).is_dir()
        if not is_folder and any(_is_unknown(name, file, folder.name, token, **kwargs) for file in missing):
            raise FileNotFoundError(
                f"The cache has a part of '{name}', without {' and '.join(missing)}, and the Hub was not asked or did "
                "not answer. Connect to the Hub, without local_files_only."
            )
        hint = f" Give one of the folders in it: {', '.join(below)}." if (below := _find_adapters(folder)) else ""
        raise FileNotFoundError(
            f"'{name}' has no {' and no '.join(missing)}.{hint} A checkpoint of this package has {CONFIG} and "
            f"{WEIGHTS}, or without adapters {CONFIG_NAME} and {SAFE_WEIGHTS_NAME}; weights in any other format are "
            "not read."
        )
    return folder


def _find_adapters(folder: Path) -> list[str]:
    """Returns the folders in a folder that hold an adapter, or else those one level below."""
    found = (sorted(folder.glob(f"{level}/{CONFIG}")) for level in ("*", "*/*"))
    return [str(file.parent.relative_to(folder)) for file in next(filter(None, found), [])]


def _download(name: str, files: list[str], revision: str | None, token: str | bool | None, **kwargs: Any) -> Path:
    _check_revision(revision)
    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=files, **kwargs))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no folder '{name}'. As a repository, at revision {revision or 'main'!r}, it is not in the "
            f"cache, and the Hub was not asked or did not answer ({error}). Correct the folder, or connect to the "
            "Hub, without local_files_only."
        ) from error
    except RevisionNotFoundError as error:
        refs = HfApi(token=token).list_repo_refs(name)
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
        raise FileNotFoundError(f"'{name}' has no revision '{revision}'. It has {known} and its commits.") from error
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"'{name}' is a gated repository, whose files you may not read yet. Accept its conditions on its page, "
            f"{HfApi().endpoint}/{name}, and give token=... or run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no folder '{name}', and no repository on the Hub that you may read. Check the spelling; for a "
            "private repository give token=... or run `hf auth login`."
        ) from error
    except HfHubHTTPError:
        raise
    except TRANSPORT_ERROR:  # the connection broke off: huggingface_hub takes the cache in other cases without answer
        return _download(name, files, revision, token, **{**kwargs, "local_files_only": True, "force_download": False})


def _is_unknown(name: str, file: str, commit: str, token: str | bool | None, **kwargs: Any) -> bool:
    """Tells whether neither cache nor Hub says if a repository has a file, as after PEFT has loaded its adapter."""
    if try_to_load_from_cache(name, file, kwargs.get("cache_dir"), commit) is not None:
        return False  # the cache has the file, or records that there is none
    try:
        hf_hub_download(name, file, revision=commit, token=token, **kwargs)
    except (LocalEntryNotFoundError, GatedRepoError, RepositoryNotFoundError):
        return True
    except EntryNotFoundError:
        pass  # the cache records it now
    except HfHubHTTPError:
        raise
    except TRANSPORT_ERROR:
        return True
    return False


def _check_revision(revision: str | None) -> None:
    """Raises ValueError for a revision that could be a path in the cache."""
    if revision is not None and (not re.fullmatch(r"\w([\w.+/-]*\w)?", revision) or ".." in revision):
        raise ValueError(f"`revision` must be a branch, tag or commit, got {revision!r}.")


def _read_config(folder: Path, name: str) -> tuple[MultiTaskConfig, dict[str, Any]]:
    """Reads the config of an adapter and the settings of its saved decoders."""
    try:
        peft_type = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(_damage(folder / CONFIG, name, error)) from error
    known = [config.method for config in METHODS.values()]
    if peft_type not in known:
        raise ValueError(f"'{name}' is a {peft_type} adapter. This package loads {known}; load others with PEFT.")
    try:
        config: MultiTaskConfig = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{CONFIG} of '{name}' has invalid settings: {error}") from error
    if not (config.made_for and config.made_for["decoders"]):
        raise ValueError(
            f"'{name}' has no decoders: it was made for a bare encoder. Load it with "
            f"PeftModel.from_pretrained(encoder, '{name}')."
        )
    settings = config.made_for["decoders"]
    return config, {name: settings[name] for name in DECODERS & settings.keys()}


def _damage(file: Path, name: str, error: Exception) -> str:
    how = (
        "Load it with force_download=True. If that does not help, the published file is damaged: try another revision."
    )
    if Path(os.path.expanduser(name)).is_dir():
        how = "Copy the folder again, or save it again."
    return f"{file.name} of '{name}' is damaged ({error}; {file.stat().st_size} bytes). {how}"


def _load_encoder(config: MultiTaskConfig, given: str | Path | None, name: str, **kwargs: Any) -> nn.Module:
    # The encoder may also be a local folder.
    encoder = given or config.base_model_name_or_path or base_of(config).name
    if config.revision and not given:
        _check_revision(config.revision)
        kwargs["revision"] = config.revision
    try:
        return load_encoder(encoder, use_safetensors=True, **kwargs)
    except OSError as error:
        raise FileNotFoundError(
            f"The encoder '{encoder}' of '{name}' cannot be loaded ({error}). If it has moved, give encoder='its "
            "folder or Hub id'."
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The encoder '{encoder}' of '{name}' cannot be used: {error} Or give encoder='its folder or Hub id'."
        ) from error
