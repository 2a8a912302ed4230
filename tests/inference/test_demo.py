# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The app, used as a user does: in a browser."""

import shutil

import numpy as np
import pytest
from peft import get_peft_model
from PIL import Image

from peft_polyhistor import MultiTaskDenseModel, PolyhistorLiteConfig, load_encoder
from peft_polyhistor.inference import MultiTaskPredictor


pytestmark = pytest.mark.slow
WAIT = 60_000  # milliseconds


def make_predictor(tasks):
    dense = MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), tasks, decoder_width=12, image_size=64)
    return MultiTaskPredictor(get_peft_model(dense, PolyhistorLiteConfig(tasks=tasks)))


@pytest.fixture
def url():
    """The address of an app with two checkpoints."""
    pytest.importorskip("gradio", reason="the extra 'demo' installs gradio")
    import demo

    app = demo.make_app(
        {"all": make_predictor(["semseg", "saliency", "normals"]), "one": make_predictor(["saliency"])}
    )
    _, address, _ = app.launch(prevent_thread_lock=True, quiet=True)
    yield address
    app.close()


@pytest.fixture
def page(url):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page()
        page.set_default_timeout(WAIT)
        page.goto(url)
        yield page
        chromium.close()


def test_a_picture_is_uploaded_and_its_maps_are_shown(page, tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 71, 3), dtype=np.uint8)).save(file)
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("Upload an image first.").wait_for()
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((45, 71), 40_000, np.uint16)).save(deep)
    page.locator("input[type=file]").first.set_input_files(deep)
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("got mode I;16").wait_for()
    page.get_by_label("Remove Image").first.click()
    page.locator("input[type=file]").first.set_input_files(file)
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("semseg:").first.wait_for()
    captions = page.locator(".caption-label").all_inner_texts()
    assert captions == ["semseg", "saliency", "normals"]
    page.get_by_text("probability 1").wait_for()
    page.get_by_label("normals", exact=True).uncheck()
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("normals:").wait_for(state="detached")
    page.get_by_label("Checkpoint").click()
    page.get_by_role("option", name="one").click()
    page.get_by_label("semseg", exact=True).wait_for(state="detached")
    page.get_by_label("saliency", exact=True).uncheck()
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("Choose at least one task.").wait_for()
