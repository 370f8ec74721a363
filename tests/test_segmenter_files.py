"""Weights of segmenters in files: all formats, both directions, other classes, other networks, hostile files."""

import functools
import hashlib
import http.server
import json
import threading
import warnings
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import (
    REFERENCES,
    SMALL,
    assert_same_arrays,
    random_images,
    randomize_weights,
    read_arrays,
    run_command,
    small_segmenter,
    with_config,
    write_archive,
)

from keras_resnet import (
    build,
    create,
    get_spec,
    list_models,
    list_weights,
    load_model,
    load_weights,
    save_pretrained,
    save_weights,
)
from keras_resnet.architecture.segmenter import without_auxiliary
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.weights.catalog import WEIGHTS

NARROW = REFERENCES / "segmenters"
INDEX = json.loads((NARROW / "index.json").read_text())
HEADS = ("fcn", "deeplabv3", "deeplabv3plus")
INFO = {
    "class_names": list("abcde"),
    "colors": [[i, 2 * i, 255] for i in range(5)],
    "preprocessing": SegmentationPreprocessing("tf", shorter_side=40).to_config(),
}


def trained(head="fcn", **changes):
    """A segmenter with random weights, and everything that training leaves in it."""
    unused = {} if head == "deeplabv3plus" else {"decoder_width": 48}  # the fields that no file shows have defaults
    model = small_segmenter(head, dropout=get_spec(f"{head}_resnet18").dropout, **unused, **changes)
    model.info = INFO
    return model


def load(path, head="fcn", **changes):
    """The segmenter of a file on the small network."""
    changes = {"backbone": SMALL, "output_stride": 2, "rates": (1, 2)} | changes
    return create(f"{head}_resnet18", weights=path, **{"auxiliary": True} | changes)


def logits(model):
    return keras.ops.convert_to_numpy(model(random_images(1, 21, 30, 3)))


def assert_same_weights(found, expected):
    for ours, theirs in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def path(tmp_path):
    save_weights(trained(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def no_layers(monkeypatch):
    """Building a segmenter fails."""

    def fail(*arguments, **keywords):
        raise AssertionError("a segmenter is built")

    monkeypatch.setattr("keras_resnet.weights.segmenter_weights.build_segmenter", fail)


@pytest.mark.parametrize("suffix", [".safetensors", ".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize("head", HEADS)
def test_files_restore_weights_spec_and_info(head, suffix, tmp_path):
    """Widths, dilations and classes follow from the file."""
    model, path = trained(head), tmp_path / f"model{suffix}"
    save_weights(model, path)
    restored = create(f"{head}_resnet18", weights=path, backbone=SMALL, output_stride=2, auxiliary=True)
    assert (restored.name, restored.spec) == (f"{head}_resnet18", model.spec)
    assert {name: restored.info[name] for name in INFO} == INFO
    assert_same_weights(restored, model)
    np.testing.assert_array_equal(logits(restored), logits(model))
    other = build(model.spec)
    load_weights(other, path)
    assert_same_weights(other, model)


@pytest.mark.parametrize("head", HEADS)
def test_files_without_facts_need_the_dilations(head, tmp_path):
    model, path = trained(head), tmp_path / "model.pth"
    save_weights(model, path)
    restored = load(path, head)
    assert restored.spec == model.spec and "class_names" not in restored.info
    assert restored.info["preprocessing"] == SegmentationPreprocessing().to_config()
    assert_same_weights(restored, model)
    if head != "fcn":
        with pytest.raises(ValueError, match=r"2 dilated convolutions, not 3 as `rates=\(12, 24, 36\)`"):
            load(path, head, rates=(12, 24, 36))


@pytest.mark.parametrize(("head", "auxiliary"), [("fcn", True), ("deeplabv3", False), ("deeplabv3plus", True)])
def test_torch_files_of_the_convert_command_have_the_same_outputs_in_both_directions(head, auxiliary, tmp_path):
    name = f"{head}_resnet18"
    model = create(name, classes=3, auxiliary=auxiliary)
    save_weights(randomize_weights(model), tmp_path / "a.safetensors")
    for source, target, layout in (("a.safetensors", "b.pth", "torchvision"), ("b.pth", "c.h5", "keras")):
        done = run_command("convert", tmp_path / source, tmp_path / target, "--model", name, "--layout", layout)
        assert done.exit_code == 0, done.output
    names = read_arrays(tmp_path / "b.pth").keys()
    assert all(name.startswith(("backbone.", "classifier.", "aux_classifier.")) for name in names)
    back = create(name, weights=tmp_path / "c.h5")
    assert back.spec == model.spec
    np.testing.assert_array_equal(logits(back), logits(model))


@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_the_auxiliary_head_can_be_left_out_of_files_and_models(name, tmp_path):
    """torchvision writes `aux_classifier` or not; the logits are the same."""
    row, path = INDEX["segmenters"][name], NARROW / f"{name}.safetensors"
    changes = {"backbone": replace(get_spec(row["variant"]).backbone, **row["backbone"]), **row["spec"]}
    whole, without = (create(row["variant"], weights=path, **changes, auxiliary=value) for value in (True, False))
    arrays = {name: array for name, array in read_arrays(path).items() if not name.startswith("aux_")}
    save_file(arrays, tmp_path / "model.safetensors")
    from_less = create(row["variant"], weights=tmp_path / "model.safetensors", **changes)
    assert [model.spec.auxiliary for model in (whole, without, from_less)] == [True, False, False]
    for model in (without, from_less):
        np.testing.assert_array_equal(logits(model), logits(whole))
        save_weights(model, tmp_path / "out.pth", layout="torchvision")
        assert_same_arrays(read_arrays(tmp_path / "out.pth"), arrays)
    with pytest.raises(ValueError, match="`auxiliary` should be False for these weights"):
        create(row["variant"], weights=tmp_path / "model.safetensors", **changes, auxiliary=True)
    inference = without_auxiliary(build(whole.spec))
    load_weights(inference, path)
    np.testing.assert_array_equal(logits(inference), logits(whole))
    with pytest.raises(ValueError, match="model.safetensors.*missing: aux_hidden_conv/kernel"):
        load_weights(whole, tmp_path / "model.safetensors")


@pytest.mark.parametrize("head", HEADS)
def test_other_classes_have_new_predictors(head, tmp_path):
    """Of both heads; all other weights are those of the file, and names and colours of its classes are gone."""
    model = trained(head)
    save_weights(model, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="has 5 classes: the classifier for 3 classes is newly"):
        new = load(tmp_path / "model.safetensors", head, classes=3)
    assert new.spec == replace(model.spec, classes=3) and logits(new).shape == (1, 21, 30, 3)
    assert new.info["preprocessing"] == INFO["preprocessing"] and not {"class_names", "colors"} & new.info.keys()
    for layer in new.layers:
        if layer.weights and layer.name.endswith("_logits"):
            assert layer.kernel.shape[-1] == 3 and np.std(layer.kernel) > 0.01 and not np.any(layer.bias)
        else:
            for ours, theirs in zip(layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_the_output_stride_is_the_requested_one(path):
    """Its dilations follow; the weights are the same."""
    with pytest.warns(UserWarning, match="trained with an output stride of 2, the network has 1: `output_stride=2`"):
        model = load(path, output_stride=1)
    assert model.spec == replace(trained().spec, output_stride=1)
    assert_same_weights(model, trained())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, output_stride=2)


@pytest.mark.parametrize("layout", ["timm", "cifar", "keras_hub", "torchvision_detection"])
def test_other_layouts_have_no_segmenters(layout, tmp_path):
    with pytest.raises(
        ValueError, match=r"`layout` should be .*'fcn_hidden_conv/kernel'. The layout 'keras' has names"
    ):
        save_weights(trained(), tmp_path / "model.pth", layout=layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_layers")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_of_another_head_are_refused(head, suffix, tmp_path):
    save_weights(trained(head), tmp_path / f"model{suffix}", layout="torchvision" if suffix == ".pth" else "keras")
    for other in {*HEADS} - {head}:
        with pytest.raises(ValueError, match=f"model{suffix}.*one with the head '{head}', not '{other}'"):
            load(tmp_path / f"model{suffix}", other)


@pytest.mark.usefixtures("no_layers")
def test_files_of_other_kinds_of_networks_are_refused(path):
    classifier, detector = REFERENCES / "networks/resnet18.safetensors", REFERENCES / "detectors/fasterrcnn.safetensors"
    with pytest.raises(ValueError, match=r"of a segmenter, not of a residual network.*`backbone_weights`"):
        create("fcn_resnet18", weights=classifier)
    with pytest.raises(ValueError, match="of a segmenter, not of a detector"):
        create("fcn_resnet18", weights=detector)
    for file in (path, NARROW / "deeplabv3.safetensors", NARROW / "deeplabv3plus.safetensors"):
        with pytest.raises(ValueError, match=r"not of a segmenter.*`create\(name, weights=path\)`"):
            create("resnet18", weights=file)
        with pytest.raises(ValueError, match="of a detector, not of a segmenter"):
            create("fasterrcnn_resnet18_fpn", weights=file)
        with pytest.raises(ValueError, match="not of a segmenter"):
            create("fcn_resnet18", backbone_weights=file)
    with pytest.raises(ValueError, match=r"depths=\[1, 1\] \(not \[2, 2, 2, 2\]\)"):
        create("fcn_resnet18", weights=path)


def test_a_repository_with_a_segmenter_is_one_error_that_says_how_to_load_it(path, tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(ValueError, match=r"not of a segmenter.*`create\(name, weights=path\)`"):
        create(tmp_path)


def test_segmenters_are_published_as_files(tmp_path):
    with pytest.raises(ValueError, match=r"a classifier, not a segmenter.*localizers and segmenters are written by"):
        save_pretrained(trained(), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_all_differences_are_in_one_message(tmp_path):
    row, arrays = INDEX["segmenters"]["fcn"], read_arrays(NARROW / "fcn.safetensors")
    del arrays["aux_classifier.4.bias"]
    arrays |= {"extra.weight": np.zeros(3, "float32"), "classifier.1.bias": np.zeros(5, "float32")}
    save_file(arrays, tmp_path / "model.safetensors")
    backbone = replace(get_spec(row["variant"]).backbone, **row["backbone"])
    with pytest.raises(ValueError) as refused:
        create(row["variant"], weights=tmp_path / "model.safetensors", backbone=backbone)
    for part in ("1 missing: aux_logits/bias", "1 left over: extra.weight", "fcn_hidden_bn/beta (5,), not (16,)"):
        assert part in str(refused.value)


def test_dilations_are_those_of_the_weights(tmp_path):
    path, model = tmp_path / "model.safetensors", trained("deeplabv3", rates=(3, 1))
    save_weights(model, path)
    assert load(path, "deeplabv3", rates=(3, 1)).spec.rates == (3, 1)
    with pytest.raises(ValueError, match=r"`rates` should be \(3, 1\) for these weights"):
        load(path, "deeplabv3", rates=(1, 2))
    with pytest.raises(ValueError, match="rates=.*not"):
        load_weights(trained("deeplabv3"), path)


HOSTILE = {
    "backbone channels": ("backbone.bn1.weight", (65_536,)),
    "head width": ("classifier.1.weight", (65_536, 20_000)),
    "classes": ("classifier.4.bias", (200_000, 256, 0)),
    "auxiliary width": ("aux_classifier.1.weight", (65_536,)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_widths_that_a_file_has_no_weights_for_are_refused(case, tmp_path):
    """A vector of a few kilobytes may not make a segmenter of gigabytes."""
    name, lengths = HOSTILE[case]
    row, arrays = INDEX["segmenters"]["fcn"], read_arrays(NARROW / "fcn.safetensors")
    backbone = replace(get_spec(row["variant"]).backbone, **row["backbone"])
    for length in lengths:
        save_file(arrays | {name: np.zeros(length, "float32")}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="model.safetensors"):
            create(row["variant"], weights=tmp_path / "model.safetensors", backbone=backbone)


@pytest.mark.usefixtures("no_layers")
@pytest.mark.parametrize("length", [60_000, 16_000])
def test_widths_are_checked_before_a_layer_is_made(length, tmp_path):
    for name, vector in (
        ("deeplabv3", "classifier.0.project.1.weight"),
        ("deeplabv3plus", "classifier.project.1.weight"),
    ):
        row, arrays = INDEX["segmenters"][name], read_arrays(NARROW / f"{name}.safetensors")
        save_file(arrays | {vector: np.zeros(length, "float32")}, tmp_path / "model.safetensors")
        backbone = replace(get_spec(row["variant"]).backbone, **row["backbone"])
        changes = {"backbone": backbone, "rates": row["spec"]["rates"], "head_width": 12, "decoder_width": 6}
        with pytest.raises(
            ValueError, match="`path` should be the weights.*width|since the lengths of its arrays imply"
        ):
            create(row["variant"], weights=tmp_path / "model.safetensors", **changes)


METADATA = {
    "an unknown head": lambda metadata: metadata["spec"].update(head="fnc"),
    "another head": lambda metadata: metadata["spec"].update(head="deeplabv3plus"),
    "rates without end": lambda metadata: metadata["spec"].update(rates=[1] * 100),
    "a backbone that is a number": lambda metadata: metadata["spec"].update(backbone=5),
    "the spec of a classifier": lambda metadata: metadata.update(spec=metadata["spec"]["backbone"]),
    "an impossible size": lambda metadata: metadata["info"]["preprocessing"].update(shorter_side=-1),
    "preprocessing of a detector": lambda metadata: metadata["info"]["preprocessing"].update(min_size=3),
    "other dilations": lambda metadata: metadata["spec"].update(rates=[3, 4]),
    "another width": lambda metadata: metadata["spec"].update(head_width=9),
    "no auxiliary head": lambda metadata: metadata["spec"].update(auxiliary=False),
    "too many classes": lambda metadata: metadata["spec"].update(classes=256),
    "colours that are names": lambda metadata: metadata["info"].update(colors=["red"]),
}
ONLY_KERAS = ("other dilations", "another width", "no auxiliary head")
"""Cases of files that have the layers, too; elsewhere the request and the arrays decide."""


@pytest.mark.parametrize("case", [case for case in METADATA if case not in ONLY_KERAS])
def test_damaged_metadata_of_our_own_files_are_one_error(case, path):
    metadata = json.loads(json.dumps({"spec": trained().spec.to_config(), "info": INFO}))
    METADATA[case](metadata)
    save_file(read_arrays(path), path, metadata={"keras_resnet": json.dumps(metadata)})
    with pytest.raises(ValueError, match="model.safetensors"):
        load(path)


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """{name: bytes} of the members of a segmenter's .keras file."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    trained("deeplabv3").save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_keras_files_restore_segmenters(members, tmp_path):
    model = load_model(write_archive(tmp_path / "model.keras", members))
    assert (model.spec, model.info) == (trained("deeplabv3").spec, INFO)
    np.testing.assert_array_equal(logits(model), logits(trained("deeplabv3")))


@pytest.mark.parametrize("case", METADATA)
def test_damaged_keras_files_are_one_error(case, members, tmp_path):
    changed = with_config(members, lambda config, layers: METADATA[case](config["config"]["resnet"]))
    path = write_archive(tmp_path / "model.keras", changed)
    with pytest.raises(ValueError, match="`path` should be an intact .keras file"):
        load_model(path)


def test_images_are_normalised_as_for_the_weights_of_the_backbone(tmp_path):
    network = build(SMALL, classes=3)
    network.info = {"preprocessing": Preprocessing("caffe", size=32).to_config()}
    save_weights(network, tmp_path / "network.safetensors")
    arguments = {"backbone": SMALL, "backbone_weights": tmp_path / "network.safetensors", "output_stride": 2}
    model = create("fcn_resnet18", **arguments, shorter_side=30)
    assert model.info["preprocessing"] == SegmentationPreprocessing("caffe", shorter_side=30).to_config()
    assert create("fcn_resnet18", **arguments, mode="tf").info["preprocessing"]["mode"] == "tf"


@pytest.mark.parametrize("head", HEADS)
def test_the_backbone_is_the_trained_classifier(head, test_data):
    """On the real ResNet-18: the same features at an output stride of 32, and new heads, different ones."""
    path = test_data / "imagenet_weights" / "resnet18_pq.safetensors"
    model = create(f"{head}_resnet18", backbone_weights=path, output_stride=32, classes=4)
    features = create("resnet18", include_top=False, weights=path)
    last = keras.Model(model.input, model.get_layer("conv5_block2_out").output)
    images = random_images(1, 64, 96, 3)
    np.testing.assert_array_equal(last.predict(images, verbose=0), features.predict(images, verbose=0))
    assert model.info["preprocessing"]["mode"] == "torch"
    kernels = [
        layer.kernel
        for layer in model.layers
        if layer.name.startswith(("fcn_", "aspp_", "decoder_", "aux_")) and hasattr(layer, "kernel")
    ]
    assert all(0 < np.std(kernel) < 1 for kernel in kernels) and len(kernels) >= 2


def test_backbones_get_the_strides_and_biases_of_their_weights(tmp_path):
    """Those of keras.applications: the stride in the first 1x1 convolution, biases."""
    narrow = {"depths": (1, 1), "widths": (8, 16), "stem_width": 8}
    network = randomize_weights(build(replace(get_spec("resnet50"), **narrow), classes=3, input_shape=(None, None, 3)))
    save_weights(network, tmp_path / "network.h5")
    backbone = replace(get_spec("fcn_resnet50").backbone, **narrow)
    arguments = {"backbone": backbone, "backbone_weights": tmp_path / "network.h5", "output_stride": 8}
    model = create("fcn_resnet50", **arguments)
    assert (model.spec.backbone.stride_on, model.spec.backbone.conv_bias) == ("1x1", True)
    for layer in network.layers[1:-3]:
        for ours, theirs in zip(model.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_of_another_backbone_are_refused():
    with pytest.raises(ValueError, match="exactly the weights of resnet34, the backbone of fcn_resnet34"):
        create("fcn_resnet34", backbone_weights=REFERENCES / "networks" / "resnet18.safetensors")


@pytest.mark.parametrize("name", list_models(task="segmentation"))
def test_the_weights_that_torchvision_publishes_are_known(name):
    """Names of files with the beginning of their SHA-256, results, sizes and classes, from torchvision itself."""
    tags = ["coco_voc", "torchvision:COCO_WITH_VOC_LABELS_V1"] if name in INDEX["published"] else []
    assert list_weights(name) == tags
    assert (name in list_models(task="segmentation", pretrained=True)) == bool(tags)
    for tag in tags:
        row, stated = WEIGHTS[name, tag], INDEX["published"][name]
        assert row.url == stated["url"] and row.digest == f"sha256:{row.url[-12:-4]}"
        assert row.mean_iou == pytest.approx(stated["mean_iou"] / 100)
        assert row.pixel_accuracy == pytest.approx(stated["pixel_accuracy"] / 100)
        assert row.preprocessing == SegmentationPreprocessing("torch", shorter_side=stated["shorter_side"])


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without writing about it."""

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(folder, URL of a server of its files on 127.0.0.1); Keras's cache is empty."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_tags_are_downloaded_and_have_voc_classes(served, monkeypatch):
    """The published file as torchvision names it, here of a network with random weights."""
    folder, url = served
    row = WEIGHTS["fcn_resnet50", "coco_voc"]
    name = row.url.rpartition("/")[2]
    backbone = replace(get_spec("fcn_resnet50").backbone, depths=(1, 1), widths=(4, 8), stem_width=4)
    model = randomize_weights(create("fcn_resnet50", backbone=backbone, output_stride=8))
    save_weights(model, folder / name, layout="torchvision")
    digest = f"sha256:{hashlib.sha256((folder / name).read_bytes()).hexdigest()[:8]}"
    monkeypatch.setitem(WEIGHTS, ("fcn_resnet50", "coco_voc"), replace(row, url=f"{url}/{name}", digest=digest))
    for weights in ("coco_voc", folder / name):
        loaded = create("fcn_resnet50", weights=weights, backbone=backbone)
        np.testing.assert_array_equal(logits(loaded), logits(model))
        assert loaded.info["class_names"] == INDEX["published"]["fcn_resnet50"]["categories"]
        assert loaded.info["preprocessing"] == SegmentationPreprocessing(shorter_side=520).to_config()
    monkeypatch.setitem(WEIGHTS, ("fcn_resnet50", "coco_voc"), replace(row, url=f"{url}/{name}", digest="sha256:0000"))
    with pytest.raises(ValueError, match="hash"):
        create("fcn_resnet50", weights="coco_voc", backbone=backbone)
