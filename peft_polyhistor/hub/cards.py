# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of a published adapter, which states only recorded facts of its training."""

import inspect
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftConfig, PeftModel, get_peft_model_state_dict

from ..config import MultiTaskConfig
from ..evaluation import format_score, format_scores, is_of_decoder
from ..models.encoder import ASSETS
from ..models.image_processor import normalize_image_size
from ..models.multitask import MultiTaskDenseModel
from ..tasks import TASKS
from ..tasks.kinds.binary import Binary
from ..tasks.kinds.segmentation import Segmentation
from .record import PREVIEW, TrainingRecord
from .sources import is_hub_id


TEMPLATE = ASSETS / "model_card.md"
METRIC_TYPES = {"mIoU": "mean_iou", "maxF": "f1", "mErr": "mean_angular_error"}  # names of metrics on the Hub
# Unit and better direction of scores beside the headline; `within` stands for all limits.
FURTHER_SCORES = {
    "mIoU": ("percent", "up"),
    "maxF": ("percent", "up"),
    "AbsRel": ("percent", "down"),
    "delta_1.25": ("percent", "up"),
    "median": ("degrees", "down"),
    "within": ("percent", "up"),
}


@dataclass(frozen=True)
class Base:
    """The encoder of an adapter: embedded in this package, or a repository on the Hub."""

    name: str
    is_embedded: bool

    @property
    def text(self) -> str:
        if self.is_embedded:
            return f"`{self.name}`, which comes with peft-polyhistor"
        return f"[{self.name}](https://huggingface.co/{self.name})"

    @property
    def license(self) -> str:
        if self.is_embedded:
            return "Apache-2.0, as part of peft-polyhistor; its README in the assets names the pretraining photographs"
        return f"see {self.text}"


def config_of(model: PeftModel, adapter_name: str) -> MultiTaskConfig:
    """Returns the config of an adapter.

    Raises:
        TypeError: The adapter is not of a method of this package.
    """
    config = model.peft_config[adapter_name]
    if not isinstance(config, MultiTaskConfig):
        raise TypeError(
            f"The adapter '{adapter_name}' has a {type(config).__name__}; only adapters of this package's methods get "
            "a card. Publish it with `push_to_hub`, as in PEFT."
        )
    return config


def base_of(config: MultiTaskConfig) -> Base:
    """Returns the encoder of a saved adapter; raises the errors of `find_base`."""
    return find_base(config.base_model_name_or_path, (config.made_for or {}).get("encoder"))


def find_base(name: str | None, embedded: str | None) -> Base:
    """Returns the encoder that an adapter was trained on, from its Hub id or from the name of an embedded encoder.

    Raises:
        ValueError: The encoder is unknown, or is a folder, which other users do not have.
    """
    if not name and embedded:
        return Base(embedded, is_embedded=True)
    advice = (
        "Publish the encoder, and give its Hub id, e.g. base_model='microsoft/swin-tiny-patch4-window7-224', or "
        "--base_model in `recipes/publish.py`."
    )
    if not name:
        raise ValueError(f"It is not known which encoder the adapter was trained on, so nobody could use it. {advice}")
    if Path(os.path.expanduser(name)).exists():
        raise ValueError(f"The adapter's encoder came from the folder '{name}', which others do not have. {advice}")
    if "/" not in name or not is_hub_id(name):
        raise ValueError(f"The adapter's encoder is called '{name}', which is no Hub id. {advice}")
    return Base(name, is_embedded=False)


def count_saved(model: PeftModel, adapter_name: str) -> dict[str, int]:
    """Counts the saved parameters of adapters and decoders, without the statistics of BatchNorm."""
    statistics = {buffer.data_ptr() for buffer in model.buffers()}
    saved = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    sizes = {name: tensor.numel() for name, tensor in saved.items() if tensor.data_ptr() not in statistics}
    decoders = sum(size for name, size in sizes.items() if is_of_decoder(name))
    counts = {"adapters": sum(sizes.values()) - decoders, "decoders": decoders}
    return {part: count for part, count in counts.items() if count}


def make_card(
    model: PeftModel,
    adapter_name: str,
    repo_id: str,
    file_size: int,
    training: TrainingRecord | None = None,
    license: str = "apache-2.0",
    tags: Sequence[str] = (),
    revision: str | None = None,
) -> ModelCard:
    """Makes the card of an adapter; the arguments are those of `publish`, and `file_size` is in bytes.

    Raises:
        ValueError: The encoder is unknown, or is a folder.
        TypeError: The adapter is not of a method of this package.
    """
    config = config_of(model, adapter_name)
    base = base_of(config)
    decoders = (config.made_for or {}).get("decoders")
    size = (decoders or {}).get("image_size") or (training.image_size if training else None)
    dense = model.get_base_model()
    shown = list(dense.config.tasks) if decoders and isinstance(dense, MultiTaskDenseModel) else config.tasks
    parameters = count_saved(model, adapter_name)
    return ModelCard.from_template(
        _metadata(config, shown, base, repo_id, training, license, tags),
        template_path=str(TEMPLATE),
        title=repo_id.rpartition("/")[2],
        method=f"`{config.method.lower().removeprefix('mtl_')}`",
        peft_type=config.method,
        tasks=config.tasks,
        shown=shown,
        decoders=decoders,
        checkpoint=arguments_of(repo_id, revision),
        encoder=arguments_of(base.name, None if base.is_embedded else config.revision),
        base=base.text,
        base_license=base.license,
        image_size=size,
        example_size=normalize_image_size(size or 224),
        parameters=parameters,
        file_size=file_size,
        training=training,
        preview=PREVIEW if training and PREVIEW in training.files else None,
        settings=_settings(config),
        scores=score_rows(training) if training else [],
        limits=_limits(config, base, training),
        references=_references(config),
    )


def arguments_of(name: str, revision: str | None) -> str:
    """Returns the arguments by which the code of a card loads a repository."""
    return json.dumps(name) + (f", revision={json.dumps(revision)}" if revision else "")


def _metadata(
    config: MultiTaskConfig,
    tasks: Sequence[str],
    base: Base,
    repo_id: str,
    training: TrainingRecord | None,
    license: str,
    further_tags: Sequence[str],
) -> ModelCardData:
    has_decoders = bool((config.made_for or {}).get("decoders"))
    tags = ["peft-polyhistor", config.method, "multi-task-learning", "dense-prediction", *words_for(tasks)]
    on_hub: dict[str, Any] = {} if base.is_embedded else {"base_model": base.name, "base_model_relation": "adapter"}
    return ModelCardData(
        library_name="peft",
        pipeline_tag=pipeline_of(tasks) if has_decoders else "image-feature-extraction",
        license=license,
        tags=tags + [tag for tag in further_tags if tag not in tags],
        datasets=[training.dataset_type] if training and training.dataset_is_on_hub else None,
        model_name=repo_id.rpartition("/")[2],
        eval_results=_eval_results(training) if training else None,
        **on_hub,
    )


def words_for(tasks: Sequence[str]) -> list[str]:
    """Returns search words for tasks: their names, and their tags if they have one."""
    words = ((task, TASKS[task].tag if task in TASKS else "") for task in tasks)
    return [word for pair in words for word in pair if word]


def pipeline_of(tasks: Sequence[str]) -> str | None:
    """Returns the Hub's pipeline of a dense model; `None` if none fits, e.g. for surface normals alone."""
    rows = [TASKS[task] for task in tasks if task in TASKS]
    if any(isinstance(row, Segmentation | Binary) for row in rows):
        return "image-segmentation"
    return "depth-estimation" if any(row.tag == "depth-estimation" for row in rows) else None


def _eval_results(training: TrainingRecord) -> list[EvalResult] | None:
    """Lists all finite scores; the Hub accepts no others."""
    return [
        EvalResult(
            task_type=TASKS[task].tag or task,
            task_name=task,
            dataset_type=training.dataset_type,
            dataset_name=training.dataset_name,
            dataset_split=training.split,
            metric_type=METRIC_TYPES.get(metric, metric),
            metric_name=f"{task} {metric}",
            metric_value=float(format_score(value, unit=_describe_score(task, metric)[0])),
        )
        for task, values in training.scores.items()
        for metric, value in values.items()
        if math.isfinite(value)
    ] or None


def score_rows(training: TrainingRecord) -> list[list[str]]:
    """Makes rows of task, metric, better direction and score, with several seeds also their mean and range."""
    rows = []
    for task, values in training.scores.items():
        for metric, value in values.items():
            unit, direction = _describe_score(task, metric)
            shown = " ".join(unit.split()).replace("|", "\\|")  # of one cell
            cells = [task, f"{metric}, {shown}" if shown else metric, direction, format_score(value, unit=unit)]
            of_seeds = [scores[task][metric] for scores in training.scores_by_seed.values()]
            if of_seeds:
                cells.append(format_scores(of_seeds, unit=unit))
            rows.append(cells)
    return rows


def _describe_score(task: str, metric: str) -> tuple[str, str]:
    """Returns the unit and the better direction of a score."""
    row = TASKS[task]
    if metric == row.score:
        return row.unit, row.better
    return FURTHER_SCORES.get(re.sub(r"^within_.*", "within", metric), ("", "-"))


def _settings(config: MultiTaskConfig) -> str:
    """Returns the fields of the method and of the decoders as JSON."""
    common = {field.name for field in fields(PeftConfig)} | {"made_for", "modules_to_save"}
    own: dict[str, Any] = {name: value for name, value in asdict(config).items() if name not in common}
    return json.dumps(own | {"decoders": (config.made_for or {}).get("decoders")}, indent=2)


def _limits(config: MultiTaskConfig, base: Base, training: TrainingRecord | None) -> list[str]:
    limits = [
        f"The adapter fits the weights of {base.text}. On other weights of the same shape it loads, in general "
        "with a warning, and its predictions are meaningless.",
        f"It has the tasks {', '.join(config.tasks)}.",
    ]
    if (config.made_for or {}).get("model_type") == "timm_wrapper":
        limits.append("The encoder needs the Python package timm.")
    if training is None:
        return [*limits, "Its training and its scores are not recorded."]
    data = f"{training.dataset_name} at {training.image_size} x {training.image_size} pixels"
    measured = f"It was trained and scored on {data}, and not measured on other data."
    return [*limits, measured if training.scores else f"It is made for {data}, and not measured.", *training.limits]


def _references(config: MultiTaskConfig) -> list[str]:
    """Returns the papers that the docstrings of the config and of its module cite."""
    text = f"{type(config).__doc__} {inspect.getmodule(type(config)).__doc__}"
    return [f"https://arxiv.org/abs/{paper}" for paper in dict.fromkeys(re.findall(r"\d{4}\.\d{5}", text))]
