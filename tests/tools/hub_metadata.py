# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The Hub's demands on the metadata of a model card, and the tags by which it lists models."""

import math
from typing import Any

import yaml


RELATIONS = ("adapter", "finetune", "merge", "quantized")
TEXTS = ("library_name", "pipeline_tag", "license", "license_name", "license_link", "base_model_relation")
LISTS = ("tags", "datasets", "metrics", "language")


def read_metadata(card: str) -> dict[str, Any]:
    """The YAML between the first two lines of `---`, or nothing."""
    if not card.startswith("---\n"):
        return {}
    block, found, _ = card.removeprefix("---\n").partition("\n---\n")
    return (yaml.safe_load(block) or {}) if found else {}


def check_metadata(card: str) -> list[str]:
    """Errors in the metadata of a card, one sentence each."""
    try:
        metadata = read_metadata(card)
    except yaml.YAMLError as error:
        return [f"The metadata is no YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["The metadata is no mapping."]
    errors = [f'"{key}" must be a string' for key in TEXTS if not isinstance(metadata.get(key, ""), str)]
    for key in LISTS:
        values = metadata.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{key}" must be an array of strings')
    bases = _as_list(metadata.get("base_model", []))
    errors += [f'"base_model" must be a repository, got {base!r}' for base in bases if not _is_repo(base)]
    errors += [f'"datasets" must be repositories, got {name!r}' for name in metadata.get("datasets") or [] if not name]
    if metadata.get("base_model_relation", "adapter") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {RELATIONS}')
    return errors + [error for entry in metadata.get("model-index", []) for error in _check_entry(entry)]


def _check_entry(entry: Any) -> list[str]:
    """Errors of an entry of the model-index: a name and results, each with task, dataset and metrics."""
    if not isinstance(entry, dict) or not entry.get("name") or not isinstance(entry.get("results"), list):
        return ['"model-index" entries need "name" and "results"']
    errors = []
    for result in entry["results"]:
        errors += [
            f'"model-index" results need "{part}.{key}"'
            for part, key in (("task", "type"), ("dataset", "type"), ("dataset", "name"))
            if not isinstance(result.get(part, {}).get(key), str)
        ]
        for metric in result.get("metrics") or [{}]:
            value = metric.get("value")
            if not metric.get("type") or not isinstance(value, int | float) or not math.isfinite(value):
                errors.append(f'"model-index" metrics need "type" and a finite "value", got {metric}')
    return errors


def tags_of(metadata: dict[str, Any]) -> list[str]:
    """Tags that `list_models(filter=...)` looks at."""
    tags = [*metadata.get("tags", [])]
    tags += [metadata[key] for key in ("library_name", "pipeline_tag") if key in metadata]
    for base in _as_list(metadata.get("base_model", [])):
        tags += [f"base_model:{base}", f"base_model:{metadata.get('base_model_relation', 'finetune')}:{base}"]
    tags += [f"dataset:{name}" for name in metadata.get("datasets", [])]
    return tags + ([f"license:{metadata['license']}"] if "license" in metadata else [])


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _is_repo(name: Any) -> bool:
    return isinstance(name, str) and name.count("/") == 1 and not name.startswith(("/", "."))
