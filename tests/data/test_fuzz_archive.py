# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of the PASCAL_MT archive, damaged and of every kind."""

import os
from io import BytesIO

import numpy as np
import pytest
from datasets import Image
from fuzzing import damaged, fuzz, outcome, with_checksums
from hypothesis import given
from hypothesis import strategies as st
from matlab_structs import structs
from PIL import Image as PILImage
from scipy.io import savemat

from peft_polyhistor import PASCAL_TASKS
from peft_polyhistor.data import JointTransform, check_dataset, load_dense_dataset
from peft_polyhistor.data.archive import PascalArchive
from peft_polyhistor.tasks.losses import IGNORE_INDEX


pytestmark = pytest.mark.slow

NAME = "2008_000001"
WIDTH, HEIGHT = 20, 14
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
PLACES = {"semseg": "semseg/VOC12", "saliency": "sal_distill", "normals": "normals_distill"}


def encode(image, kind, **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = PILImage.Exif()
    exif[PILImage.ExifTags.Base.Orientation] = orientation
    exif[PILImage.ExifTags.Base.Make] = "maker"
    return encode(PILImage.fromarray(PIXELS), "JPEG", exif=exif)


RGB = PILImage.fromarray(PIXELS)
ONE_PIXEL = PILImage.new("RGB", (1, 1), "red")
JPEGS = {
    "RGB": encode(RGB, "JPEG"),
    "progressive": encode(RGB, "JPEG", progressive=True, subsampling=2),
    "gray": encode(RGB.convert("L"), "JPEG"),
    "CMYK": encode(RGB.convert("CMYK"), "JPEG"),
    "restart markers": encode(RGB, "JPEG", restart_marker_blocks=1, icc_profile=b"profile" * 9),
    "one pixel": encode(ONE_PIXEL, "JPEG"),
    "several": encode(RGB, "MPO", save_all=True, append_images=[RGB]),
    **{f"turned {orientation}": turned(orientation) for orientation in (1, 3, 6, 8, 9)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An archive without files, for tests that write one and read that."""
    root = tmp_path_factory.mktemp("PASCAL_MT")
    for name in ("ImageSets/Context", "JPEGImages", *PLACES.values(), "human_parts", "pascal-context/trainval"):
        (root / name).mkdir(parents=True)
    return root


def decoded(data):
    return Image().decode_example({"bytes": data, "path": None})


def check_picture(image_bytes, size, original):
    """As `datasets` decodes it, a picture has the stored pixels, not turned, and can be trained on."""
    image = decoded(image_bytes)
    assert image.size == size == original.size
    np.testing.assert_array_equal(np.asarray(image), np.asarray(original))
    pixels = JointTransform(32, train=True)({"image_id": [NAME], "image": [image]})["pixel_values"][0]
    assert pixels.shape == (3, 32, 32) and bool(pixels.isfinite().all())


@fuzz()
@given(st.data())
def test_pictures(folder, data):
    whole = JPEGS[data.draw(st.sampled_from(sorted(JPEGS)))]
    content = data.draw(st.just(whole) | damaged(whole))
    path = folder / f"JPEGImages/{NAME}.jpg"
    path.write_bytes(content)
    result = outcome(lambda: PascalArchive(folder).read_image(NAME), str(path))
    assert result is not None or content != whole
    if result is not None:
        check_picture(*result, PILImage.open(BytesIO(content)))


GRAY = np.random.default_rng(0).choice(np.array([0, 1, 15, 20, 255], np.uint8), (HEIGHT, WIDTH))
PALETTE = PILImage.fromarray(GRAY)
PALETTE.putpalette(bytes(range(256)) * 3)
FEW = PILImage.fromarray(GRAY % 2).convert("P")
DEEP = PILImage.fromarray(GRAY.astype(np.uint16) * 257)
PNGS = {
    "gray": encode(PILImage.fromarray(GRAY), "PNG"),
    "palette": encode(PALETTE, "PNG"),
    "one bit palette": encode(FEW, "PNG", bits=1),
    "with transparency": encode(PALETTE, "PNG", transparency=3),
    "one bit": encode(PILImage.fromarray(GRAY > 9), "PNG"),
    "16 bits": encode(DEEP, "PNG"),
    "RGB": encode(RGB, "PNG"),
    "RGBA": encode(RGB.convert("RGBA"), "PNG"),
    "gray and alpha": encode(PILImage.fromarray(GRAY).convert("LA"), "PNG"),
    "turned": encode(PALETTE, "PNG", exif=PILImage.open(BytesIO(JPEGS["turned 6"])).getexif()),
    "text": encode(PALETTE, "PNG", pnginfo=None, icc_profile=b"profile" * 9),
    "a JPEG": JPEGS["gray"],
    "a GIF": encode(PALETTE, "GIF"),
    "a BMP": encode(PALETTE, "BMP"),
    "a TIFF": encode(PILImage.fromarray(GRAY), "TIFF"),
}
CONTEXT = np.where(np.arange(WIDTH) < 5, 3, 2).astype(np.uint16)[None].repeat(HEIGHT, 0)


@fuzz()
@given(st.data())
def test_labels_in_png(folder, data):
    task = data.draw(st.sampled_from(sorted(PLACES)))
    whole = PNGS[data.draw(st.sampled_from(sorted(PNGS)))]
    content = data.draw(st.just(whole) | damaged(whole) | damaged(whole).map(with_checksums))
    path = folder / PLACES[task] / f"{NAME}.png"
    path.write_bytes(content)
    savemat(folder / f"pascal-context/trainval/{NAME}.mat", {"LabelMap": CONTEXT})
    label = outcome(lambda: PascalArchive(folder).read_label(NAME, task, (WIDTH, HEIGHT)), str(path))
    if label is not None:
        expected = PILImage.open(BytesIO(content))
        assert expected.format == "PNG" and expected.mode in (("RGB",) if task == "normals" else ("L", "P"))
        expected = np.asarray(expected)
        if task == "normals":
            expected = np.where((CONTEXT == 3)[..., None], expected, 0)
        if task == "semseg":
            assert set(np.unique(label)) <= {*range(21), IGNORE_INDEX}
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, expected)


def matlab(compressed=False, **content):
    buffer = BytesIO()
    savemat(buffer, content, do_compression=compressed)
    return buffer.getvalue()


LEFT = np.indices((HEIGHT, WIDTH))[1] < 7
PART = {"part_name": "head", "mask": LEFT.astype(np.uint8)}
PERSON = {"class": "person", "class_ind": np.array([[15]]), "mask": PART["mask"], "parts": structs(PART, PART)}
BARE = PERSON | {"parts": np.zeros((0, 0))}
ANNO = structs({"imname": NAME, "objects": structs(PERSON, BARE)})


def read_mat(folder, task, content):
    """The label with these bytes as its file, or None where it is refused."""
    place = "human_parts" if task == "human_parts" else "pascal-context/trainval"
    path = folder / place / f"{NAME}.mat"
    path.write_bytes(content)
    (folder / f"normals_distill/{NAME}.png").write_bytes(PNGS["RGB"])
    label = outcome(lambda: PascalArchive(folder).read_label(NAME, task, (WIDTH, HEIGHT)), str(path))
    if label is not None:
        channels = () if task == "human_parts" else (3,)
        assert label.dtype == np.uint8 and label.shape == (HEIGHT, WIDTH, *channels)
        assert task == "normals" or label.max() <= 6
        assert task == "human_parts" or set(np.unique(label)) <= {0, *np.unique(PIXELS)}
    return label


arrays = st.builds(
    lambda shape, kind, value: np.full(shape, value).astype(kind),
    st.lists(st.sampled_from([0, 1, 2, HEIGHT, WIDTH]), min_size=0, max_size=3).map(tuple),
    st.sampled_from(["u1", "i1", "u2", "i4", "f4", "f8", "c16", "?", "u8"]),
    st.sampled_from([0, 1, 3, 15, 2, 255]),
)
leaves = st.one_of(arrays, st.sampled_from(["head", "torso", "tail", "", "é", LEFT, CONTEXT, 15, 3.5, "person"]))
contents = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(
            st.sampled_from(["parts", "mask", "class_ind", "objects", "a"]), inner, min_size=1, max_size=4
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: np.array([*items, None], object)[:-1]),
        st.lists(inner, min_size=4, max_size=4).map(lambda v: structs(dict(zip("abcd", v, strict=True)))),
    ),
    max_leaves=12,
)


@st.composite
def annotations(draw):
    """Annotations with something else in one or more places."""

    def maybe(value):
        return draw(contents) if draw(st.integers(0, 6)) == 0 else value

    part = {"part_name": maybe("head"), "mask": maybe(PART["mask"])}
    person = {
        "class": maybe("person"),
        "class_ind": maybe(np.array([[15]])),
        "mask": maybe(LEFT),
        "parts": maybe(structs(part)),
    }
    return maybe(structs({"imname": maybe("x"), "objects": maybe(structs(person, person))}))


@fuzz()
@given(st.data())
def test_labels_of_other_content_in_matlab_files(folder, data):
    task = data.draw(st.sampled_from(["human_parts", "normals"]))
    key = data.draw(st.sampled_from(["anno", "LabelMap"]))
    read_mat(folder, task, matlab(data.draw(st.booleans()), **{key: data.draw(contents | annotations())}))


lines = st.one_of(
    st.sampled_from(
        [NAME, "2008_000002", "../../secret", "/etc/passwd", "..", "a\\b", "naïve_图", "x" * 300, "\x00", "a b"]
    ),
    st.text(max_size=12),
)


@fuzz()
@given(
    st.binary(max_size=40) | st.lists(lines, max_size=5).map(lambda names: "\n".join(names).encode("utf-8", "replace"))
)
def test_lists_of_ids(folder, content):
    path = folder / "ImageSets/Context/train.txt"
    path.write_bytes(content)
    archive = PascalArchive(folder)
    for image_id in outcome(lambda: archive.read_ids("train"), str(path)) or []:
        outcome(lambda image_id=image_id: archive.read_image(image_id), str(folder / "JPEGImages"))
        assert (folder / "JPEGImages" / f"{image_id}.jpg").resolve().parent == folder / "JPEGImages"


@fuzz(part=0.1)
@given(st.data())
def test_the_loader_takes_an_archive_whole_or_leaves_nothing(write_archive, tmp_path_factory, data):
    root = tmp_path_factory.mktemp("archive")
    archive, cache = write_archive(root / "PASCAL_MT"), root / "cache"
    files = sorted(path for path in archive.rglob("*") if path.is_file() and NAME in path.name)
    path = data.draw(st.sampled_from(files))
    # SciPy reads MATLAB files, and may end the process on a damaged one: `check_dataset` alone is safe from that.
    kinds = ["swap", "remove", "folder", "link", "pipe", "device", *(["damage"] if path.suffix != ".mat" else [])]
    match data.draw(st.sampled_from(kinds)):
        case "damage":
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        case "swap":
            path.write_bytes(data.draw(st.sampled_from(files)).read_bytes())
        case kind:
            whole = path.rename(root / path.name)
            if kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to(whole)
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "device":
                path.symlink_to("/dev/zero")
    dataset = outcome(lambda: load_dense_dataset(archive, cache_dir=str(cache)), str(archive))
    assert (check_dataset(archive, splits=["train"]).faults == []) is (dataset is not None)
    if dataset is None:
        assert not [file for file in cache.rglob("*") if file.suffix in (".arrow", ".json")]
        return
    for row in dataset:
        assert all(row[task].size == row["image"].size for task in PASCAL_TASKS)
