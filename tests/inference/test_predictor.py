# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The predictor against the evaluation, its pictures of every kind, and the command."""

import io
import math
import re
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from accelerate import Accelerator, cpu_offload
from peft import get_peft_model
from PIL import Image
from tiny_models import make_swin
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor

from peft_polyhistor import (
    TASKS,
    DenseImageProcessor,
    MultiTaskDenseModel,
    PolyhistorLiteConfig,
    VmtAdapterConfig,
    load_encoder,
)
from peft_polyhistor.__main__ import main
from peft_polyhistor.data import JointTransform, collate, synthetic_scenes
from peft_polyhistor.evaluation import evaluate_tasks
from peft_polyhistor.inference import MultiTaskPredictor, strips
from peft_polyhistor.inference import predictor as predictor_module
from peft_polyhistor.inference.page import PredictionPage
from peft_polyhistor.inference.paint import paint_label, paint_over, paint_row
from peft_polyhistor.inference.predictor import Prediction
from peft_polyhistor.inference.strips import resize_rows
from peft_polyhistor.tasks import regression
from peft_polyhistor.tasks.losses import resize_to_label
from peft_polyhistor.tasks.task import UNLABELED


NAMES = ["semseg", "human_parts", "saliency", "normals"]
SIZE = 64


def make_model(perturb, config=PolyhistorLiteConfig, image_size=SIZE):
    dense = MultiTaskDenseModel.from_encoder(load_encoder("swin-mini"), NAMES, decoder_width=12, image_size=image_size)
    return perturb(get_peft_model(dense, config(tasks=NAMES, reduction_factor=4)))


@pytest.fixture
def model(perturb):
    return make_model(perturb)


@pytest.fixture
def picture():
    """Wider than high, no side a multiple of a stride."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 71, 3), dtype=np.uint8))


def score(task, predictions, labels):
    """The score of a task from the maps of predictions, of which one that is no logit becomes one again."""
    values = torch.stack([torch.from_numpy(prediction.maps[task]) for prediction in predictions])
    if TASKS[task].class_names:
        values = torch.nn.functional.one_hot(values.long(), TASKS[task].channels).movedim(-1, 1).float()
    else:
        values = values[:, None].logit() if values.ndim == 3 else values.movedim(-1, 1)
    metric = TASKS[task].metric()
    metric.update(metric.statistics(values, labels))
    return metric.compute()


@pytest.mark.parametrize("config", [PolyhistorLiteConfig, VmtAdapterConfig])
def test_predictions_are_those_that_evaluation_scores(perturb, tmp_path, config):
    model = make_model(perturb, config)
    scenes = synthetic_scenes(NAMES, "val", count=5, image_size=SIZE, cache_dir=str(tmp_path))
    pictures = [scenes[i]["image"] for i in range(5)]
    prepared = scenes.with_transform(JointTransform(SIZE, train=False))
    batch = collate([prepared[i] for i in range(5)])
    scores = evaluate_tasks(model, DataLoader(prepared, 5, collate_fn=collate), NAMES, Accelerator(cpu=True))
    predictions = MultiTaskPredictor(model)(pictures)
    for task in NAMES:
        assert score(task, predictions, batch["labels"][task]) == pytest.approx(scores[task], abs=1e-4)
    with torch.no_grad():
        logits = model.eval()(batch["pixel_values"]).logits
    for row, prediction in enumerate(predictions):
        assert np.array_equal(prediction.maps["semseg"], logits["semseg"][row].argmax(dim=0))
        assert np.array_equal(prediction.maps["saliency"], logits["saliency"][row, 0].sigmoid())


def test_maps_have_the_form_and_the_size_of_their_picture(model, picture):
    prediction = MultiTaskPredictor(model)(picture)
    forms = {task: (values.shape, values.dtype) for task, values in prediction.maps.items()}
    assert forms == {
        "semseg": ((45, 71), np.uint8),
        "human_parts": ((45, 71), np.uint8),
        "saliency": ((45, 71), np.float32),
        "normals": ((45, 71, 3), np.float32),
    }
    assert (prediction.maps["saliency"] >= 0).all() and (prediction.maps["saliency"] <= 1).all()
    np.testing.assert_allclose(np.linalg.norm(prediction.maps["normals"], axis=2), 1, rtol=1e-5)
    shares = prediction.classes("semseg")
    assert sum(shares.values()) == pytest.approx(1) and list(shares.values()) == sorted(shares.values(), reverse=True)
    for name, share in shares.items():
        assert share == np.mean(prediction.maps["semseg"] == TASKS["semseg"].class_names.index(name))


def test_the_model_stays_in_its_mode_and_predicts_without_dropout(model, picture):
    MultiTaskPredictor(model).tasks.clear()
    assert model.config.tasks == NAMES
    predictor = MultiTaskPredictor(model.train(), tasks=["normals"])
    first, second = predictor([picture, picture], batch_size=1)
    assert model.training and first.maps.keys() == {"normals"}
    model.base_model.model.encoder.eval()
    predictor(picture)
    assert model.training and not any(module.training for module in model.base_model.model.encoder.modules())
    assert np.array_equal(first.maps["normals"], second.maps["normals"])


def test_pictures_show_the_maps(model, picture):
    prediction = MultiTaskPredictor(model)(picture)
    painted = prediction.paint("semseg")
    assert painted.mode == "P" and np.array_equal(np.asarray(painted), prediction.maps["semseg"])
    class_id = int(prediction.maps["semseg"][0, 0])
    assert painted.convert("RGB").getpixel((0, 0)) == TASKS["semseg"].palette[class_id]
    assert [prediction.paint(task).mode for task in ("saliency", "normals")] == ["L", "RGB"]
    pixels = np.asarray(picture)
    for task in NAMES:
        assert np.array_equal(np.asarray(prediction.overlay(task, opacity=0)), pixels)
    opaque = np.asarray(prediction.overlay("semseg", opacity=1))
    is_background = prediction.maps["semseg"] == 0
    assert np.array_equal(opaque, np.where(is_background[..., None], pixels, np.asarray(painted.convert("RGB"))))
    assert np.array_equal(prediction.overlay("normals", opacity=1), prediction.paint("normals"))
    with pytest.raises(ValueError, match=r"`opacity` must be from 0 .*, got 1\.5"):
        prediction.overlay("semseg", 1.5)
    with pytest.raises(ValueError, match=r"no prediction of 'depth'. Choose one of \['semseg'"):
        prediction.paint("depth")
    with pytest.raises(ValueError, match="'normals' has no classes"):
        prediction.classes("normals")


def test_a_baked_model_predicts_the_same(model, picture):
    expected = MultiTaskPredictor(model, ["normals"])(picture).maps["normals"]
    predictor = MultiTaskPredictor(model.bake(["normals"]))
    assert predictor.tasks == ["normals"]
    np.testing.assert_allclose(predictor(picture).maps["normals"], expected, atol=1e-4)


def test_the_size_of_training_comes_with_the_checkpoint(model, picture, perturb, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = MultiTaskPredictor.from_pretrained(tmp_path, tasks=["semseg"])
    assert loaded.image_size == (SIZE, SIZE)
    assert np.array_equal(loaded(picture).maps["semseg"], MultiTaskPredictor(model)(picture).maps["semseg"])
    assert MultiTaskPredictor(model, image_size=(32, 96)).image_size == (32, 96)
    with pytest.raises(ValueError, match=r"has no `image_size`.*Give image_size="):
        MultiTaskPredictor(make_model(perturb, image_size=None))


def test_the_size_is_that_of_the_active_adapter(model, perturb, tmp_path):
    make_model(perturb, image_size=(96, 32)).save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "second")
    predictor, fixed = MultiTaskPredictor(model), MultiTaskPredictor(model, image_size=32)
    for adapter, size in (("default", (SIZE, SIZE)), ("second", (96, 32)), ("default", (SIZE, SIZE))):
        model.set_adapter(adapter)
        assert MultiTaskPredictor(model).image_size == predictor.image_size == size and fixed.image_size == (32, 32)
        assert MultiTaskPredictor(torch.compile(model)).image_size == size
        DenseImageProcessor.save_for(model, tmp_path)
        assert DenseImageProcessor.from_pretrained(tmp_path).image_size == list(size)
        for single in (model.bake(["normals"]), model.merge_and_unload(tasks=["normals"])["normals"]):
            assert MultiTaskPredictor(single).image_size == size


def test_another_size_keeps_the_mean_and_the_standard_deviation_of_the_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path)
    DenseImageProcessor(SIZE, [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]).save_pretrained(tmp_path)
    for size, expected in ((None, [SIZE, SIZE]), (32, [32, 32]), ((32, 96), [32, 96])):
        processor = MultiTaskPredictor.from_pretrained(tmp_path, image_size=size).processor
        assert processor.image_size == expected
        assert (processor.image_mean, processor.image_std) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
    ViTImageProcessor(size={"height": 96, "width": 96}).save_pretrained(tmp_path)  # of the encoder
    assert MultiTaskPredictor.from_pretrained(tmp_path).image_size == (SIZE, SIZE)
    other = DenseImageProcessor(96)
    assert MultiTaskPredictor.from_pretrained(tmp_path, processor=other).processor is other
    for make, first in ((MultiTaskPredictor, model), (MultiTaskPredictor.from_pretrained, tmp_path)):
        with pytest.raises(ValueError, match=r"Got image_size=32 and a processor, .* Give one of the two"):
            make(first, image_size=32, processor=other)


def test_what_cannot_predict_is_refused(model, picture):
    with pytest.raises(TypeError, match="needs a MultiTaskDenseModel, adapted or not, got SwinStages"):
        MultiTaskPredictor(model.base_model.model.encoder)
    with pytest.raises(ValueError, match="No decoder for"):
        MultiTaskPredictor(model.bake(["semseg"]), tasks=["normals"])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        MultiTaskPredictor(model)([picture], batch_size=0)


def test_predictions_that_are_not_finite_are_refused(model, picture):
    head = model.base_model.model.decoders.modules_to_save["default"].heads["semseg"]
    with torch.no_grad():
        head.classifier.bias[7] = math.nan
    with pytest.raises(ValueError, match=r"'semseg' are NaN or infinite.* lower learning rate"):
        MultiTaskPredictor(model)(picture)
    assert MultiTaskPredictor(model, ["normals"])(picture).maps.keys() == {"normals"}


def test_finite_logits_whose_values_are_infinite_are_refused(depth, picture):
    TASKS["depth"] = replace(depth, valid=(0.1, 80), objective="silog")
    dense = MultiTaskDenseModel.from_encoder(make_swin(), ["depth"], image_size=SIZE)
    with torch.no_grad():
        dense.decoders.heads["depth"].classifier.bias.fill_(100)
    with pytest.raises(ValueError, match=r"'depth' are NaN or infinite.* lower learning rate"):
        MultiTaskPredictor(dense)(picture)


def test_an_offloaded_model_predicts_the_same(model, picture):
    expected = MultiTaskPredictor(model)(picture).maps
    np.testing.assert_equal(MultiTaskPredictor(cpu_offload(model, torch.device("cpu")))(picture).maps, expected)


@pytest.mark.parametrize("processor", [96, ViTImageProcessor(do_resize=False)])
def test_a_processor_of_another_class_is_refused(model, processor):
    with pytest.raises(TypeError, match=r"must be a DenseImageProcessor, got a (int|ViTImageProcessor)\. Create one"):
        MultiTaskPredictor(model, processor=processor)


def test_encoded_bytes_are_no_list_of_images(model):
    with pytest.raises(TypeError, match="a PIL image or an array, got bytes"):
        MultiTaskPredictor(model)(b"png")


def test_pictures_of_every_kind_are_opened(model, picture, tmp_path):
    pixels = np.asarray(picture)
    picture.save(tmp_path / "picture.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    given = [tmp_path / "picture.png", str(tmp_path / "picture.png"), str(tmp_path / "turned.png"), picture, pixels]
    for prediction in MultiTaskPredictor(model, ["semseg"])(given, batch_size=3):
        assert np.array_equal(np.asarray(prediction.image), pixels)
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"):
        assert MultiTaskPredictor(model, ["semseg"])(picture.convert(mode)).maps["semseg"].shape == (45, 71)
    assert MultiTaskPredictor(model, ["semseg"])(pixels[:1, :1, 0]).maps["semseg"].shape == (1, 1)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_pictures_come_by_url(model, picture, tmp_path):
    names = {"picture.png": "picture.png", "a b.png": "a%20b.png", "ä.png": "%C3%A4.png"}
    for name in names:
        picture.save(tmp_path / name)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        predictor = MultiTaskPredictor(model, ["semseg"])
        for name in (*names, *names.values()):
            assert np.array_equal(np.asarray(predictor(f"{url}/{name}").image), np.asarray(picture))
        with pytest.raises(ConnectionError, match=r"nothing\.png' cannot be downloaded: .*404"):
            predictor(f"{url}/nothing.png")
        server.shutdown()
    with pytest.raises(ConnectionError, match="cannot be downloaded"):
        predictor(f"{url}/picture.png")


def test_what_is_no_picture_is_named(model, picture, tmp_path, monkeypatch):
    predictor = MultiTaskPredictor(model)
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    (tmp_path / "cut.png").write_bytes(stored.getvalue()[:900])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"cut\.png' cannot be read as an image"):
        predictor(tmp_path / "cut.png")
    with pytest.raises(ValueError, match=r"text\.png' is no image\. Give a file that Pillow reads"):
        predictor(tmp_path / "text.png")
    for missing, message in ((tmp_path, "is a folder"), (tmp_path / "nothing.png", "There is no file")):
        with pytest.raises(FileNotFoundError, match=message):
            predictor(missing)
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(
        ValueError, match=r"deep\.png' cannot be read as an image: it must be .* 8 bits .* got mode I;16"
    ):
        predictor(tmp_path / "deep.png")
    for array in (np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ValueError, match="image array must be uint8"):
            predictor(array)
    for other in (3, [3]):
        with pytest.raises(TypeError, match="got int"):
            predictor(other)
    picture.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"large\.png' cannot be read as an image: .*decompression bomb"):
        predictor(tmp_path / "large.png")


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def test_the_command_writes_maps_and_a_page(model, checkpoint, picture, tmp_path, capsys):
    sources = [str(tmp_path / name) for name in ("a <b>.png", "a_b.png", "gone.png")]
    for source in sources[:2]:
        picture.save(source)
    out = tmp_path / "out"
    assert main(["predict", checkpoint, *sources, "--out", str(out)]) == 1
    output = capsys.readouterr()
    assert "There is no file" in output.err and f"2 of 3 images are in {out / 'index.html'}" in output.out
    assert sorted(path.name for path in out.iterdir()) == ["a_b", "a_b-2", "index.html"]
    maps = MultiTaskPredictor(model)(picture).maps
    assert np.array_equal(np.asarray(Image.open(out / "a_b" / "semseg.png")), maps["semseg"])
    normals = np.asarray(Image.open(out / "a_b" / "normals.png")) / 127.5 - 1
    np.testing.assert_allclose(normals, maps["normals"], atol=1 / 127)
    page = (out / "index.html").read_text()
    assert "a &lt;b&gt;.png" in page and "<b>.png" not in page
    assert main(["predict", checkpoint, sources[2], "--out", str(tmp_path / "none")]) == 1
    assert "No image could be predicted" in capsys.readouterr().err
    for task in NAMES:
        assert f'src="a_b-2/{task}.jpg"' in page and (out / "a_b-2" / f"{task}.jpg").is_file()


def test_the_command_says_what_is_wrong(checkpoint, picture, tmp_path, capsys):
    picture.save(tmp_path / "picture.png")
    for arguments, message in (
        ([f"{tmp_path}/nowhere"], "There is no folder"),
        ([checkpoint, "--tasks", "depth"], "No decoder for ['depth']."),
        ([checkpoint, "--image_size", "0"], "`image_size` must be a side"),
        ([checkpoint, "--out", str(tmp_path)], "is not empty"),
        ([checkpoint, "--out", str(tmp_path / "picture.png")], "is a file. Give a new folder."),
    ):
        picture_and_out = [
            str(tmp_path / "picture.png"),
            *([] if "--out" in arguments else ["--out", str(tmp_path / "o")]),
        ]
        assert main(["predict", arguments[0], *picture_and_out, *arguments[1:]]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


# Strips read the logits at places and with weights that are rounded otherwise than in one piece.
STRIP_TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.mark.parametrize("size", [(45, 71), (1, 200), (300, 2), (7, 9), (16, 16)])
@pytest.mark.parametrize("rows", [1, 3, 44])
def test_strips_are_rows_of_the_whole(size, rows):
    logits = torch.randn(1, 5, 16, 16)
    whole = resize_to_label(logits, torch.empty(size, device="meta"))
    slices = [slice(start, min(start + rows, size[0])) for start in range(0, size[0], rows)]
    strips = [resize_rows(logits, size, part) for part in slices]
    torch.testing.assert_close(torch.cat(strips, dim=2), whole, **STRIP_TOLERANCE)
    assert torch.equal(resize_rows(logits, size, slice(0, size[0])), whole)


def test_maps_of_large_pictures_are_made_in_strips(model, picture, monkeypatch):
    expected = MultiTaskPredictor(model)(picture)
    seen, resize = [], resize_rows
    monkeypatch.setattr(predictor_module, "resize_rows", lambda *args: seen.append(args[2]) or resize(*args))
    monkeypatch.setattr(strips, "STRIP", 21 * 71 * 4)  # 4 rows of semseg, the largest
    found = MultiTaskPredictor(model)(picture)
    assert sum(rows.start == 0 for rows in seen) == len(NAMES) and slice(40, 44) in seen and slice(44, 45) in seen
    for task in ("semseg", "human_parts"):
        assert found.maps[task].dtype == expected.maps[task].dtype
        assert (found.maps[task] != expected.maps[task]).mean() <= 1 / found.maps[task].size  # a tie of two classes
    for task in ("saliency", "normals"):
        np.testing.assert_allclose(found.maps[task], expected.maps[task], **STRIP_TOLERANCE)
    for task in NAMES:  # painting goes by strips too
        monkeypatch.setattr(strips, "STRIP", 71 * 3 * 4)
        parts = found.paint(task), found.overlay(task)
        monkeypatch.undo()
        assert all(map(np.array_equal, parts, (found.paint(task), found.overlay(task)))), task


@pytest.fixture
def depth():
    TASKS["depth"] = regression("depth", unit="metres")
    yield TASKS["depth"]
    del TASKS["depth"]


def test_a_map_in_metres_is_painted_from_its_own_range_or_that_of_its_row(depth, picture):
    metres = np.linspace(2, 7, 45 * 71, dtype=np.float32).reshape(45, 71)
    metres[3, 4] = np.nan
    prediction = Prediction(picture, {"depth": metres})
    painted = np.asarray(prediction.paint("depth")).astype(int)
    assert painted[0, 0] == 0 and painted[-1, -1] == 255 and len(np.unique(painted)) == 256
    assert painted[3, 4] == np.asarray(Image.new("RGB", (1, 1), UNLABELED).convert("L"))[0, 0]
    TASKS["depth"] = replace(depth, value_range=(2, 12))
    fixed = np.asarray(prediction.paint("depth")).astype(int)
    assert fixed[0, 0] == 0 and fixed[-1, -1] == 128
    TASKS["depth"] = replace(depth, value_range=(3, 4))
    clipped = np.asarray(prediction.paint("depth"))
    assert clipped[0, 0] == 0 and clipped[-1, -1] == 255


def test_values_that_are_unknown_leave_the_image(depth):
    image = np.full((1, 4, 3), 100, np.uint8)
    painted = paint_over("depth", torch.tensor([[[1.0, 10, torch.nan, torch.inf]]]), image, 0.5)
    assert (painted[0, 2:] == 100).all() and (painted[0, 1] != 100).any()


@pytest.mark.parametrize("value", [0.25, 7.0, -3.0])
def test_a_map_of_one_value_is_painted_in_one_shade(depth, value):
    assert (paint_label("depth", torch.full((1, 4, 5), value)) == 0).all()


def test_label_and_prediction_of_one_picture_share_a_range(depth):
    label = torch.linspace(0, 10, 20).view(1, 4, 5)
    row = paint_row(np.zeros((4, 5, 3), np.uint8), "depth", label, label / 2)
    assert row[..., 5:10, 0].max() == 255 and row[..., 10:, 0].max() == 128


def test_the_page_names_the_values_of_a_tint_and_the_axes_of_vectors(depth, picture, tmp_path):
    maps = {
        "depth": np.linspace(2, 7.25, 45 * 71, dtype=np.float32).reshape(45, 71),
        "saliency": np.zeros((45, 71), np.float32),
        "normals": np.full((45, 71, 3), 3**-0.5, np.float32),
    }
    with PredictionPage(tmp_path, "Depth") as page:
        page.add("picture.jpg", Prediction(picture, maps))
    text = (tmp_path / "index.html").read_text()
    legend = re.findall(r'<li><i(?: style="background: rgb\((.*?)\)")?></i>(.*?) *</li>', text)
    assert legend == [
        ("", "2 metres"), ("230, 60, 40", "7.25 metres"), ("", "probability 0"), ("230, 60, 40", "probability 1"),
        ("255, 128, 128", "+x"), ("128, 255, 128", "+y"), ("128, 128, 255", "+z"),
    ]  # fmt: skip


def test_the_page_folds_the_end_of_a_long_legend_and_leaves_the_background_transparent(picture, tmp_path):
    ids = np.zeros((45, 71), np.uint8)
    ids[0, :20] = np.arange(1, 21)
    with PredictionPage(tmp_path, "Classes") as page:
        page.add("picture.jpg", Prediction(picture, {"semseg": ids}))
    shown, folded = (tmp_path / "index.html").read_text().split("<summary>13 more</summary>")
    assert shown.count("<li>") == 8 and folded.count("<li>") == 13
    assert "<i></i>background 99.4%" in shown and "below 0.1%" in shown and " 0.0%" not in shown


def test_names_of_folders_are_valid_everywhere(picture, tmp_path):
    prediction = Prediction(picture, {"saliency": np.zeros((45, 71), np.float32)})
    sources = [
        "https://a.b/" + "x" * 300,
        "ü" * 200,
        "CON.png",
        "a/nul.tar.gz",
        "com¹",
        "lpt0.jpg",
        "console.png",
        "...",
    ]
    with PredictionPage(tmp_path, "Names") as page:
        names = [page.add(source, prediction).name for source in sources]
    assert names == [
        "x" * 200, "ü" * 100, "image-CON", "image-nul.tar", "image-com¹", "image-lpt0", "console", "image",
    ]  # fmt: skip


def test_the_map_of_a_task_named_image_leaves_the_image(depth, picture, tmp_path):
    TASKS["Image"] = replace(depth, name="Image")
    with PredictionPage(tmp_path, "Image") as page:
        folder = page.add("photo.png", Prediction(picture, {"Image": np.ones((45, 71), np.float32)}))
    assert {path.name.lower() for path in folder.iterdir()} == {"image.png", "image.jpg", "image-2.jpg"}
    assert 'src="photo/image-2.jpg"' in (tmp_path / "index.html").read_text()


def test_a_page_without_predictions_is_not_written(tmp_path):
    with PredictionPage(tmp_path / "out", "None"):
        pass
    assert list((tmp_path / "out").iterdir()) == []
