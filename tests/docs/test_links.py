# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Links and images of the documents lead somewhere."""

import json

import pytest
from documents import DOCUMENTS, INDEX, ROOT, anchors_of, links_of, read


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_relative_links_and_images_exist(file):
    for link in links_of(file):
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.is_relative_to(ROOT) and target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_the_index_of_results_names_every_file():
    results = INDEX.parent
    assert {file.name for file in results.iterdir()} - {INDEX.name} == {
        link for link in links_of(INDEX) if "/" not in link
    }


def test_pictures_are_small():
    sizes = {file.name: file.stat().st_size for file in (ROOT / "recipes" / "results").glob("*.png")}
    assert all(size <= 300_000 for size in sizes.values()), sizes


def test_documents_speak_of_the_project_alone():
    text = "\n".join(read(file) for file in DOCUMENTS) + json.dumps(read(ROOT / "recipes" / "quickstart.ipynb"))
    for foreign in ("/tmp/", "/root/", "/home/", "/work/"):
        assert foreign not in text
