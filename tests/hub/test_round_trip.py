# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Publishing and loading through a Hub: published, found, downloaded, loaded, and every way that it can fail."""

import json
import socket
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import publish
import pytest
import torch
import train_pascal
from file_contents import bytes_of
from huggingface_hub import HfApi, ModelCard, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from methods_table import PLACED_BY_FILE, check_equal
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from tiny_models import make_swin, perturb
from transformers import SwinModel, ViTImageProcessor

from peft_polyhistor import (
    DenseImageProcessor,
    MultiTaskDenseModel,
    PolyhistorLiteConfig,
    load,
    load_encoder,
    view_encoder,
)
from peft_polyhistor.hub import publish as upload
from peft_polyhistor.hub import publishing
from peft_polyhistor.inference import MultiTaskPredictor
from peft_polyhistor.training import parse_settings


TASKS = ["semseg", "saliency", "normals"]
BASE, REPO = "ann/tiny-swin", "ann/lite"
PROCESSOR = "preprocessor_config.json"
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", PROCESSOR}


@pytest.fixture(autouse=True)
def base(hub, monkeypatch):
    """Everybody is ann, whose tiny Swin is on the Hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    make_swin().push_to_hub(BASE)


@pytest.fixture
def model():
    """A dense model as a user makes it, whose weights are no fresh ones."""
    dense = MultiTaskDenseModel.from_encoder(load_encoder(BASE), TASKS, decoder_width=12, image_size=96)
    return perturb(get_peft_model(dense, PolyhistorLiteConfig(tasks=TASKS))).eval()


@torch.no_grad()
def predict(model, seed=5):
    return model(torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(seed))).logits


def files_of(hub, repo=REPO, revision="main"):
    return hub.repos[repo].commits[hub.repos[repo].resolve(revision)]


def test_published_found_downloaded_and_loaded(hub, model, tmp_path, monkeypatch):
    model.push_to_hub(REPO)
    assert files_of(hub).keys() == FILES
    found = HfApi().list_models(filter=[f"base_model:adapter:{BASE}", "peft"])
    assert [info.id for info in found] == [REPO]
    card = ModelCard.load(REPO)
    assert (card.data.library_name, card.data.base_model, card.data.base_model_relation) == ("peft", BASE, "adapter")
    assert f'peft_polyhistor.load("{REPO}")' in card.text and "Not measured" in card.text
    check_equal(predict(load(REPO, cache_dir=tmp_path)), predict(model))
    assert list(tmp_path.rglob("*.safetensors"))
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    predictor = MultiTaskPredictor.from_pretrained(REPO, cache_dir=tmp_path)
    np.testing.assert_equal(predictor(picture).maps, MultiTaskPredictor(model)(picture).maps)
    load(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_equal(predict(load(REPO)), predict(model))


def test_merged_models_go_and_come(hub, model):
    merged = model.merge_and_unload(tasks=["semseg"])["semseg"]
    with pytest.raises(ValueError, match=rf"weights of its encoder '{BASE}', so their licence .*give it"):
        upload(merged, "ann/merged")
    assert "ann/merged" not in hub.repos
    upload(merged, "ann/merged", adapter=REPO, license="mit")
    assert ModelCard.load("ann/merged").data.license == "mit"
    assert files_of(hub, "ann/merged").keys() == {"README.md", "config.json", "model.safetensors", PROCESSOR}
    loaded = load("ann/merged")
    check_equal(predict(loaded), predict(merged), **PLACED_BY_FILE)
    assert type(loaded) is MultiTaskDenseModel and f"[{REPO}]" in ModelCard.load("ann/merged").text
    bare = get_peft_model(SwinModel.from_pretrained(BASE), PolyhistorLiteConfig(tasks=["semseg"])).eval()
    swin = perturb(bare).merge_and_unload()
    upload(swin, "ann/swin", license="mit")
    card = ModelCard.load("ann/swin")
    assert (card.data.base_model, card.data.base_model_relation) == (BASE, "finetune")
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        check_equal(SwinModel.from_pretrained("ann/swin")(pixels), swin(pixels), **PLACED_BY_FILE)
    with pytest.raises(FileNotFoundError, match="'ann/swin' has no adapter_config"):
        load("ann/swin")


def test_no_file_of_an_earlier_checkpoint_stays_beside_other_weights(hub, model):
    model.push_to_hub(REPO)
    earlier = {"results.json", "training.yaml", "predictions.png", "notes.md", "data/results.json"}
    hub.repos[REPO].add("main", {**files_of(hub), **dict.fromkeys(earlier, b"of the user, or of earlier weights")})
    commits = len(hub.repos[REPO].commits)
    merged = model.merge_and_unload(tasks=["semseg"])["semseg"]
    upload(merged, REPO, license="mit")
    assert not files_of(hub).keys() & {"adapter_config.json", "adapter_model.safetensors", "training.yaml"}
    assert not files_of(hub).keys() & {"results.json", "predictions.png"}
    assert files_of(hub).keys() >= {"config.json", "model.safetensors", "notes.md", "data/results.json"}
    assert len(hub.repos[REPO].commits) == commits + 1
    check_equal(predict(load(REPO)), predict(merged), **PLACED_BY_FILE)


def test_takes_the_arguments_of_transformers(hub, model):
    model.push_to_hub(REPO, commit_message="First", max_shard_size="1GB", tags=None, private=None, token=None)
    assert files_of(hub).keys() == FILES


@torch.no_grad()
def test_loads_onto_the_bare_encoder(model):
    model.push_to_hub(REPO)
    bare = PeftModel.from_pretrained(SwinModel.from_pretrained(BASE), REPO).eval()
    pixels = torch.randn(2, 3, 96, 96)
    kwargs = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
    for task in TASKS:
        maps = model.base_model.model.encoder(pixels, tasks=[task])[task]
        check_equal(list(bare(pixels, task=task, **kwargs).reshaped_hidden_states[1:]), list(maps))
    with pytest.raises(ValueError, match=rf"made for {BASE} with .*'blocks': 5.*this encoder has .*'blocks': 6"):
        PeftModel.from_pretrained(make_swin(depths=[1, 1, 3, 1]), REPO)


def test_revisions_stay_what_they_were(hub, model):
    first = model.push_to_hub(REPO)
    before = predict(model)
    perturb(model.train()).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    perturb(model)
    model.push_to_hub(REPO, revision="trial")
    card = ModelCard(files_of(hub, revision="trial")["README.md"].decode()).text
    assert card.count(f'("{REPO}", revision="trial")') == 2 and f'(encoder, "{REPO}", revision="trial")' in card
    merged = model.merge_and_unload(tasks=["semseg"])["semseg"]
    upload(merged, "ann/merged", revision="trial", license="mit")
    assert b'from_pretrained("ann/merged", revision="trial")' in files_of(hub, "ann/merged", "trial")["README.md"]
    check_equal(predict(load(REPO)), before)
    check_equal(predict(load(REPO, revision=first.oid)), before)
    with pytest.raises(FileNotFoundError, match=rf"'{REPO}' has no revision 'v9'\. It has \['main', 'trial'\]"):
        load(REPO, revision="v9")


def test_a_pull_request_leaves_the_branch_as_it_is(hub, model, monkeypatch):
    model.push_to_hub(REPO)
    before = files_of(hub)
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    perturb(model)
    with pytest.raises(HfHubHTTPError, match="403"):
        model.push_to_hub(REPO)
    commit = model.push_to_hub(REPO, create_pr=True)
    assert commit.pr_revision == "refs/pr/1" and files_of(hub) == before
    check_equal(predict(load(REPO, revision="refs/pr/1")), predict(model))
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    model.push_to_hub(REPO, create_pr=True, revision="main")
    with pytest.raises(HfHubHTTPError, match="404"):
        model.push_to_hub(REPO, create_pr=True, revision="trial")
    assert hub.repos[REPO].refs.keys() == {"main", "refs/pr/1", "refs/pr/2"}
    assert b"revision" not in files_of(hub, revision="refs/pr/2")["README.md"].partition(b"## Scores")[0]


def test_private_needs_the_token(hub, model, tmp_path, monkeypatch):
    model.push_to_hub(REPO, private=True)
    assert hub.repos[REPO].private
    monkeypatch.delenv("HF_TOKEN")
    check_equal(predict(load(REPO, token="hf_ann")), predict(model))
    for token in (None, "hf_bob"):
        with pytest.raises(FileNotFoundError, match=r"no repository on the Hub that you may read.*private repository"):
            load(REPO, token=token, force_download=True, cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        load("ann/other", token="hf_wrong")
    assert not list(HfApi().list_models(filter=f"base_model:{BASE}"))
    with pytest.raises(HfHubHTTPError, match=r"401[\s\S]*`hf auth login`"):
        model.push_to_hub("ann/second")


def test_a_gated_repository_tells_where_to_accept_its_conditions(hub, model, tmp_path, monkeypatch):
    model.push_to_hub(REPO)
    hub.repos[REPO].gated = True
    check_equal(predict(load(REPO, cache_dir=tmp_path / "ann")), predict(model))
    monkeypatch.delenv("HF_TOKEN")
    for token in (None, "hf_bob"):
        with pytest.raises(
            FileNotFoundError, match=rf"gated .*Accept its conditions .*{hub.url}/{REPO}, .*auth login"
        ):
            load(REPO, token=token, cache_dir=tmp_path / "others")


def test_what_should_be_private_never_goes_public(hub, model):
    model.push_to_hub(REPO)
    before = files_of(hub)
    perturb(model)
    with pytest.raises(ValueError, match="exists and is public, and the upload was to be private"):
        model.push_to_hub(REPO, private=True)
    assert files_of(hub) == before


def test_what_cannot_be_loaded_says_why(hub, model):
    with pytest.raises(FileNotFoundError, match="no folder 'ann/nothing', and no repository"):
        load("ann/nothing")
    with pytest.raises(FileNotFoundError, match="'ann/tiny-swin' has no adapter_config"):
        load(BASE)
    model.push_to_hub(REPO)
    files = files_of(hub)
    content = files["adapter_model.safetensors"]
    hub.repos[REPO].add("main", {**files, "adapter_model.safetensors": content[:100]})
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors of 'ann/lite' is damaged .*force_download"):
        load(REPO)
    others = {name: file for name, file in files.items() if name != "adapter_model.safetensors"}
    hub.repos[REPO].add("main", {**others, "adapter_model.bin": content})
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors.*any other format are not read"):
        load(REPO)


def test_a_hub_that_is_not_reached_is_named(hub, model, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint=closed))
    with pytest.raises(ConnectionError, match=rf"The Hub at {closed} cannot be reached .*Nothing was uploaded"):
        model.push_to_hub(REPO)


def test_an_upload_that_broke_off_is_gone_on_with(hub, model, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cuts = None  # every upload, so that retries of the client do not matter
    with pytest.raises(ConnectionError, match=r"upload to 'ann/lite' broke off .*Run the same again"):
        model.push_to_hub(REPO)
    assert not files_of(hub)
    hub.cuts = 0
    model.push_to_hub(REPO)
    assert files_of(hub).keys() == FILES and len(hub.uploaded) == 2  # with the encoder's
    check_equal(predict(load(REPO)), predict(model))


@pytest.mark.parametrize(("dropped", "message"), [
    ("/branch/", "cannot be reached .*Nothing was uploaded"),
    ("/tree/", "cannot be reached .*Nothing was uploaded"),
    ("/commit/", "before it was known whether the commit to 'ann/lite' succeeded"),
])  # fmt: skip
def test_a_connection_that_breaks_off_is_a_connection_error(dropped, message, hub, model):
    model.push_to_hub(REPO)
    hub.dropped = dropped
    with pytest.raises(ConnectionError, match=message):
        model.push_to_hub(REPO, revision="next")


def test_what_the_cache_has_loads_where_the_connection_breaks_off(hub, model, tmp_path):
    model.push_to_hub(REPO)
    PeftConfig.from_pretrained(REPO, cache_dir=str(tmp_path))
    for options in ({}, {"local_files_only": True}):
        hub.dropped = "/"
        with pytest.raises(FileNotFoundError, match=r"a part of 'ann/lite', without adapter_model\.safetensors"):
            load(REPO, cache_dir=str(tmp_path), **options)
    hub.dropped = ""
    load(REPO, cache_dir=str(tmp_path))
    hub.dropped = "/"
    check_equal(predict(load(REPO, cache_dir=str(tmp_path))), predict(model))


@torch.no_grad()
def test_an_adapter_lives_beside_its_own_encoder(hub, model, tmp_path):
    """transformers alone would inject the adapter into the encoder."""
    model.push_to_hub(BASE)
    check_equal(predict(load(BASE)), predict(model))
    pixels = torch.randn(2, 3, 96, 96)
    plain = make_swin()
    plain.save_pretrained(tmp_path)
    get_peft_model(make_swin(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(
        tmp_path
    )
    check_equal(load_encoder(tmp_path)(pixels), view_encoder(plain)(pixels), **PLACED_BY_FILE)


@torch.no_grad()
def test_an_adapter_beside_a_model_that_is_not_its_base_is_refused(hub, model, tmp_path):
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload(tasks=["semseg"])["semseg"]
    merged.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"an adapter \(adapter_config\.json\) and a model .*either may be meant"):
        load(tmp_path)
    upload(merged, "ann/merged", license="mit")
    again = perturb(get_peft_model(load("ann/merged"), PolyhistorLiteConfig(tasks=["semseg"]))).eval()
    again.push_to_hub("ann/merged")
    check_equal(predict(load("ann/merged")), predict(again), **PLACED_BY_FILE)


def test_other_methods_are_published_as_ever(hub):
    lora = get_peft_model(SwinModel.from_pretrained(BASE), LoraConfig(target_modules=["q_proj"]))
    lora.push_to_hub("ann/lora")
    assert "adapter_model.safetensors" in files_of(hub, "ann/lora")
    with pytest.raises(ValueError, match="'ann/lora' is a LORA adapter"):
        load("ann/lora")


def test_the_encoder_is_one_that_others_have(hub, tmp_path):
    make_swin().save_pretrained(tmp_path)
    model = get_peft_model(SwinModel.from_pretrained(tmp_path), PolyhistorLiteConfig(tasks=TASKS))
    with pytest.raises(ValueError, match=r"came from the folder .* which others do not have\. Publish the encoder"):
        model.push_to_hub(REPO)
    assert REPO not in hub.repos
    model.push_to_hub(REPO, base_model=BASE)
    assert json.loads(files_of(hub)["adapter_config.json"])["base_model_name_or_path"] == BASE
    with pytest.raises(ValueError, match="has no decoders: it was made for a bare encoder"):
        load(REPO)
    merged = model.merge_and_unload(task="semseg")
    merged.config.merged_from["base_model"] = str(tmp_path)
    upload(merged, "ann/merged", base_model=BASE, license="mit")
    assert str(tmp_path).encode() not in b"".join(files_of(hub, "ann/merged").values())
    assert json.loads(files_of(hub, "ann/merged")["config.json"])["merged_from"]["base_model"] == BASE
    fresh = get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS))
    fresh.base_model.model.name_or_path = ""
    with pytest.raises(ValueError, match="not known which encoder"):
        fresh.push_to_hub("ann/second")


@pytest.fixture
def run(model, tmp_path):
    """The folder of a finished run with seed 0, and what else a run leaves."""
    folder = tmp_path / "polyhistor_lite"
    model.save_pretrained(folder / "best", save_embedding_layers=False)
    scores = {"semseg": {"mIoU": 31.4159}, "saliency": {"mIoU": 50.0, "maxF": 60.0}, "normals": {"mErr": float("nan")}}
    history = [{"step": 2, "scores": scores}, {"step": 4, "scores": {**scores, "semseg": {"mIoU": 1.0}}}]
    recorded = train_pascal.Settings(methods=["polyhistor_lite"], tasks=TASKS, encoder=BASE, output_dir=str(tmp_path))
    results = {"history": history, "settings": {**vars(recorded), "processes": 1}, "versions": {"torch": "2.15.0"}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "predictions.png").write_bytes(b"a picture")
    return folder


def test_a_run_is_published_with_its_record(hub, model, run, tmp_path, monkeypatch):
    arguments = [str(run / "best"), "--repo", REPO, "--private"]
    for folder, how in ((run, r"Give .*polyhistor_lite/best\."), (tmp_path, "Give the folder `best` or `last`")):
        with pytest.raises(FileNotFoundError, match=how):
            publish.main([str(folder), "--repo", REPO])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    arrived, hub.cuts = len(hub.uploaded), None
    with pytest.raises(ConnectionError, match="broke off"):
        publish.main(arguments)
    hub.cuts = 0
    publish.main(arguments)
    publish.main(arguments)
    assert len(hub.uploaded) == arrived + 2  # weights and picture, once each
    files = files_of(hub)
    assert files.keys() == FILES | {"predictions.png", "results.json", "training.yaml"} and hub.repos[REPO].private
    assert str(tmp_path).encode() not in b"".join(files.values())
    [model_index] = ModelCard.load(REPO).data.to_dict()["model-index"]
    assert [result["task"] for result in model_index["results"]] == [
        {"type": "semantic-segmentation", "name": "semseg"},
        {"type": "saliency-detection", "name": "saliency"},
    ]
    assert all(result["dataset"]["split"] == "val" for result in model_index["results"])
    metrics = {metric["name"]: metric["value"] for result in model_index["results"] for metric in result["metrics"]}
    assert metrics == {"semseg mIoU": 31.42, "saliency mIoU": 50.0, "saliency maxF": 60.0}  # of the best step; no NaN
    assert "Optimiser steps: 2" in ModelCard.load(REPO).text
    (tmp_path / "training.yaml").write_bytes(files["training.yaml"])
    [again] = parse_settings([str(tmp_path / "training.yaml")], "", train_pascal.DEFAULT_CONFIG, train_pascal.Settings)
    assert (again.methods, again.tasks, again.encoder, again.seed) == (["polyhistor_lite"], TASKS, BASE, 0)
    check_equal(predict(load(REPO)), predict(model))


def test_a_run_is_published_after_the_folder_of_its_encoder_is_gone(hub, run, tmp_path):
    config = json.loads((run / "best/adapter_config.json").read_text())
    gone = config | {"base_model_name_or_path": str(tmp_path / "gone")}
    (run / "best/adapter_config.json").write_text(json.dumps(gone))
    results = json.loads((run / "results.json").read_text())
    results["settings"]["encoder"] = str(tmp_path / "gone")
    (run / "results.json").write_text(json.dumps(results))
    publish.main([str(run / "best"), "--repo", REPO, "--base_model", BASE])
    files = files_of(hub)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert json.loads(files["results.json"])["settings"]["encoder"] == BASE
    assert f"encoder: {BASE}\n".encode() in files["training.yaml"]


def test_a_run_is_published_without_images_of_its_data(hub, run):
    results = json.loads((run / "results.json").read_text())
    results["examples"] = {"semseg": {"best": [{"image_id": "ann_at_home", "index": 0, "score": 1.0}], "worst": []}}
    (run / "results.json").write_text(json.dumps(results))
    publish.main([str(run / "best"), "--repo", REPO])
    assert b"ann_at_home" in files_of(hub)["results.json"] and "predictions.png" in files_of(hub)
    publish.main([str(run / "best"), "--repo", REPO, "--no_preview"])
    assert files_of(hub).keys() == FILES | {"results.json", "training.yaml"}
    assert b"ann_at_home" not in b"".join(files_of(hub).values())
    assert b"predictions.png" not in files_of(hub)["README.md"]
    assert json.loads(files_of(hub)["results.json"])["history"][0]["scores"] == results["history"][0]["scores"]


def test_a_checkpoint_keeps_its_image_processor(hub, model, run):
    processor = DenseImageProcessor(96, image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))
    processor.save_pretrained(run / "best")
    publish.main([str(run / "best"), "--repo", REPO])
    predictor = MultiTaskPredictor.from_pretrained(REPO)
    assert predictor.processor.to_dict() == processor.to_dict()
    merged = model.merge_and_unload(tasks=["semseg"])["semseg"]
    upload(merged, "ann/merged", processor=predictor.processor, license="mit")
    assert MultiTaskPredictor.from_pretrained("ann/merged").processor.to_dict() == processor.to_dict()
    with pytest.raises(TypeError, match="must be a DenseImageProcessor, got a ViTImageProcessor"):
        upload(predictor.model, REPO, processor=ViTImageProcessor())


def test_a_processor_that_the_cache_lacks_is_told_apart_from_none(hub, model, tmp_path):
    processor = DenseImageProcessor(96, image_mean=(0.5, 0.5, 0.5))
    upload(model, REPO, processor=processor)
    offline = {"cache_dir": tmp_path, "local_files_only": True}
    load_encoder(BASE, cache_dir=tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # as PEFT does
        hf_hub_download(REPO, name, cache_dir=tmp_path)
    with pytest.warns(
        UserWarning, match=r"cache does not hold preprocessor_config\.json of 'ann/lite'.* a `processor`"
    ):
        load(REPO, **offline)
    load(REPO, cache_dir=tmp_path)
    assert MultiTaskPredictor.from_pretrained(REPO, **offline).processor.to_dict() == processor.to_dict()
    hub.repos[REPO].add("main", {name: file for name, file in files_of(hub).items() if name != PROCESSOR})
    load(REPO, cache_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MultiTaskPredictor.from_pretrained(REPO, **offline).processor.image_mean != [0.5, 0.5, 0.5]


def test_tokens_are_neither_saved_nor_sent_on_nor_said(hub, model, run, tmp_path, monkeypatch, capfd, caplog):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = bytes_of(run)
    publish.main([str(run / "best"), "--repo", REPO, "--private"])
    assert bytes_of(run) == before and not list(Path.cwd().iterdir())  # publishing leaves nothing behind
    load(REPO, token="hf_ann", cache_dir=tmp_path / "cache").save_pretrained(tmp_path / "again")
    perturb(model)  # so that there is something to send
    said = []
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cuts = None
    for refused in (
        lambda: model.push_to_hub("ann/second", token="hf_ann"),  # breaks off
        lambda: model.push_to_hub(REPO, token="hf_bob"),
        lambda: load(REPO, token="hf_bob", force_download=True, cache_dir=tmp_path),
        lambda: load(REPO, token="hf_wrong", force_download=True, cache_dir=tmp_path),
    ):
        with pytest.raises((OSError, ValueError, HfHubHTTPError)) as caught:
            refused()
        error = caught.value
        while error is not None:
            said.append(f"{error} {error!r}")
            error = error.__cause__ or error.__context__
    said += [*capfd.readouterr(), caplog.text]
    files = {**bytes_of(tmp_path), **files_of(hub)}
    assert len(said) > 6 and len(files) > 10
    for token in ("hf_ann", "hf_bob", "hf_wrong"):
        assert not [text for text in said if token in text]
        assert not [name for name, content in files.items() if token.encode() in content]
