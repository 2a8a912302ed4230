# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Browser app that predicts an uploaded image with a checkpoint. It needs `pip install -e ".[demo]"`.

python recipes/demo.py runs/scenes/polyhistor_lite/best user/name
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from html import escape
from itertools import islice

import gradio as gr
from accelerate import PartialState
from PIL import Image

from peft_polyhistor import TASKS
from peft_polyhistor.inference import MultiTaskPredictor, Prediction


SWATCH = "display: inline-block; width: 0.8em; height: 0.8em; border: 1px solid gray;"  # CSS of a colour
Shown = list[tuple[Image.Image, str]]  # images and their captions


def make_app(predictors: dict[str, MultiTaskPredictor]) -> gr.Blocks:
    """Creates the app from predictors by the name of their checkpoint."""
    first = next(iter(predictors))
    with gr.Blocks(title="peft-polyhistor", analytics_enabled=False) as app:
        gr.Markdown("# One frozen encoder, many dense tasks")
        with gr.Row():
            with gr.Column(scale=1):
                # Without `image_mode=None` gradio clips images of 16 bits instead of handing them on.
                image = gr.Image(type="pil", image_mode=None, label="Image")
                checkpoint = gr.Dropdown(list(predictors), value=first, label="Checkpoint")
                tasks = gr.CheckboxGroup(predictors[first].tasks, value=predictors[first].tasks, label="Tasks")
                opacity = gr.Slider(0, 1, value=0.6, label="Opacity of the maps")
                button = gr.Button("Predict", variant="primary")
            with gr.Column(scale=2):
                maps = gr.Gallery(label="Maps", columns=2, height="max-content", object_fit="contain")
                legends = gr.HTML()
        checkpoint.change(lambda name: _offer(predictors[name].tasks), checkpoint, tasks)
        # Gradio runs one call of a function at a time, as a predictor requires.
        button.click(_make_answer(predictors), [image, checkpoint, tasks, opacity], [maps, legends])
    return app


def _offer(tasks: list[str]) -> gr.CheckboxGroup:
    return gr.CheckboxGroup(choices=tasks, value=tasks)


def _make_answer(predictors: dict[str, MultiTaskPredictor]) -> Callable[..., tuple[Shown, str]]:
    def answer(image: Image.Image | None, checkpoint: str, tasks: list[str], opacity: float) -> tuple[Shown, str]:
        if image is None:
            raise gr.Error("Upload an image first.")
        if not tasks:
            raise gr.Error("Choose at least one task.")
        loaded = predictors[checkpoint]
        try:
            prediction = MultiTaskPredictor(loaded.model, tasks, processor=loaded.processor)(image)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        shown = [(prediction.overlay(task, opacity), task) for task in tasks]
        return shown, "".join(make_legend(task, prediction) for task in tasks)

    return answer


def make_legend(task: str, prediction: Prediction, most: int = 8) -> str:
    """Writes the legend of a map as HTML: of its classes, those that cover most of the image."""
    texts = [f"<b>{task}:</b>"]
    for name, colour, share in islice(TASKS[task].legend(prediction.label(task)), most):
        fill = f"rgb{colour}" if colour else "none"
        swatch = f'<span style="{SWATCH} background: {fill}"></span>'
        texts.append(f'<span style="display: inline-block">{swatch} {escape(name)} {share}</span>')
    return f"<p>{'&emsp;'.join(texts)}</p>"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints", nargs="+", help="Checkpoint folders, or model ids on the Hub such as user/name."
    )
    parser.add_argument(
        "--image_size",
        type=int,
        help="Side in pixels to which images are resized for the model. Default: the size used in training.",
    )
    parser.add_argument("--port", type=int, help="Port of the app. Default: the first free port from 7860.")
    options = parser.parse_args(argv)
    predictors = {}
    for name in options.checkpoints:
        predictors[name] = MultiTaskPredictor.from_pretrained(name, image_size=options.image_size)
        predictors[name].model.to(PartialState().device)
    make_app(predictors).launch(server_port=options.port)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(str(error))
