"""Features: against the tensors the networks are built of, the networks' own answers, NumPy and scikit-learn."""

import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from support import random_images, randomize_weights

from keras_resnet import build, create, endpoints, get_spec, list_models, load_model, preprocessing
from keras_resnet.architecture.metadata import channel_axis
from keras_resnet.data.datasets import Dataset, Split, Stream
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.models.feature_extractor import feature_extractor
from keras_resnet.training.model_setup import in_precision
from keras_resnet.transfer.extraction import extract
from keras_resnet.transfer.probes import (
    draw_feature_map,
    feature_map,
    linear_probe,
    nearest_images,
    nearest_neighbours,
)
from keras_resnet.transfer.vector_files import read_features
from keras_resnet.transfer.vectors import write_features

LOOK = Preprocessing("torch", size=32, resize=None)
CLASSES = ("ants", "bees", "wasps")


def short(name):
    """The spec of a network with few blocks; those that differ in depth alone are the same then."""
    spec = get_spec(name)
    return replace(spec, depths=(2, *[1] * (len(spec.depths) - 1)))


FAMILIES = {short(name): name for name in list_models()}


@pytest.mark.parametrize("spec", FAMILIES, ids=FAMILIES.values())
def test_endpoints_are_the_tensors_that_the_network_is_built_of(spec):
    inputs = keras.Input((None, None, 3))
    maps = endpoints(replace(spec, kernel_initializer="zeros", data_format="channels_last"), inputs)
    body = keras.Model(inputs, list(maps.values())[-1])
    found = feature_extractor(body, endpoints=list(maps)).output
    assert len(found) == len(spec.stages) + 1 and all(found[name] is maps[name] for name in maps)
    aliases = {f"C{number + 1}": f"stage{number}" for number in range(1, len(spec.stages) + 1)}
    found = feature_extractor(body, endpoints=aliases).output
    assert all(found[alias] is maps[name] for alias, name in aliases.items())
    assert list(feature_extractor(body).output) == [f"stage{len(spec.stages)}"]


@pytest.mark.parametrize(("version", "end"), [("ResNet50", "conv5_block3_out"), ("ResNet50V2", "post_relu")])
def test_networks_of_keras_applications(version, end):
    model = getattr(keras.applications, version)(weights=None, input_shape=(64, 64, 3), classes=3)
    found = feature_extractor(model, endpoints=("C2", "C5", "pre_logits")).output
    expected = {"C2": "conv2_block3_out", "C5": end, "pre_logits": "avg_pool"}
    assert all(found[name] is model.get_layer(layer).output for name, layer in expected.items())
    assert found["C2"].shape == (None, 8 if version.endswith("V2") else 16, 8 if version.endswith("V2") else 16, 256)


def network(classes=10, seed=0, **changes):
    """A small random network that knows how its images are prepared."""
    changes = {"depths": (1, 1, 1), "widths": (8, 8, 16), "stem_width": 8} | changes
    model = randomize_weights(create("resnet20", input_shape=(32, 32, 3), classes=classes, **changes), seed)
    model.info = {"preprocessing": LOOK.to_config(), "weights": f"seed {seed}"}
    return model


def answers(model, inputs):
    return {name: np.asarray(found) for name, found in model.predict(inputs, verbose=0).items()}


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.5}, {"preactivation": True}])
def test_the_classifier_on_top_of_the_pre_logits_is_the_network(changes):
    model, inputs = network(classifier_activation=None, **changes), random_images(4, 32, 32, 3)
    kernel, bias = model.get_layer("predictions").get_weights()
    found = answers(feature_extractor(model, endpoints="pre_logits"), inputs)["pre_logits"]
    np.testing.assert_allclose(found @ kernel + bias, model.predict(inputs, verbose=0), rtol=1e-4, atol=1e-4)


def test_the_pre_logits_of_a_body_are_those_of_the_whole(tmp_path):
    model, inputs = network(), random_images(2, 32, 32, 3)
    body = keras.Model(model.inputs, model.get_layer("avg_pool").input)
    whole, alone = (answers(feature_extractor(m, endpoints="pre_logits"), inputs) for m in (model, body))
    np.testing.assert_array_equal(whole["pre_logits"], alone["pre_logits"])
    vectors = keras.Model(model.inputs, model.get_layer("avg_pool").output)
    assert feature_extractor(vectors, endpoints="pre_logits").output["pre_logits"] is vectors.output


def test_pooled_maps_come_back_from_their_file(tmp_path):
    model, inputs = network(), random_images(3, 32, 32, 3)
    maps = answers(feature_extractor(model, endpoints=("stem", "stage3")), inputs)
    assert {name: found.shape for name, found in maps.items()} == {"stem": (3, 32, 32, 8), "stage3": (3, 8, 8, 16)}
    for pooling, over in (("avg", np.mean), ("max", np.max)):
        extractor = feature_extractor(model, endpoints=("stem", "stage3", "pre_logits"), pooling=pooling)
        extractor.save(tmp_path / "extractor.keras")
        again = load_model(tmp_path / "extractor.keras")
        found = answers(again, inputs)
        for name in maps:
            np.testing.assert_allclose(found[name], over(maps[name], axis=(1, 2)), rtol=1e-5, atol=1e-6)
        assert preprocessing(again) == preprocessing(extractor) == LOOK and again.spec == model.spec


def test_images_of_any_size_when_asked():
    model = network()
    extractor = feature_extractor(model, endpoints="stage3", input_shape=(None, None, 3))
    inputs = random_images(1, 40, 56, 3)
    fixed = feature_extractor(model, endpoints="stage3", input_shape=(40, 56, 3))
    found = answers(extractor, inputs)["stage3"]
    assert found.shape == (1, 10, 14, 16) and preprocessing(extractor) == LOOK
    np.testing.assert_allclose(found, answers(fixed, inputs)["stage3"], rtol=1e-5, atol=1e-5)
    assert feature_extractor("resnet20").input_shape == (None, None, None, 3)
    for shape in ((40, 40, 1), (40, 40), 40):
        with pytest.raises(ValueError, match="`input_shape` should be like"):
            feature_extractor(model, input_shape=shape)


def test_channels_first_is_channels_last():
    last, first = (
        feature_extractor(build(short_spec, include_top=False), endpoints=("stage2", "pre_logits"), pooling="avg")
        for short_spec in (replace(short("resnet18"), data_format=f"channels_{order}") for order in ("last", "first"))
    )
    assert first.input_shape == (None, 3, None, None)
    assert {name: found.shape[1] for name, found in first.output.items()} == {"stage2": 128, "pre_logits": 512}
    assert (channel_axis(last), channel_axis(first)) == (3, 1)
    body = build(replace(short("resnet18"), data_format="channels_first"), include_top=False)
    assert feature_extractor(body, input_shape=(3, 64, 96)).input_shape == (None, 3, 64, 96)
    with pytest.raises(ValueError, match="`input_shape` should be like"):
        feature_extractor(body, input_shape=(64, 96, 3))
    if keras.backend.backend() != "tensorflow":  # whose convolutions do not take it on processors
        randomize_weights(last)
        first.set_weights(last.get_weights())
        first.info = last.info = {"preprocessing": LOOK.to_config()}
        found = [extract(model, noise(3), "stage2", batch_size=2).vectors for model in (last, first)]
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"endpoints": "stage4"}, r"\['stem', 'stage1', 'stage2', 'stage3', 'pre_logits'\].*endpoints='stage4'"),
        ({"endpoints": ("stem", "C6")}, "endpoints='C6'"),
        ({"endpoints": ()}, "some of .*Received: endpoints="),
        ({"endpoints": 5}, "some of .*Received: endpoints=5"),
        ({"endpoints": [["stem"]]}, r"some of .*Received: endpoints=\[\['stem'\]\]"),
        ({"pooling": "mean"}, "`pooling` should be one of"),
        ({"weights": "imagenet"}, "`weights` should be left out"),
    ],
)
def test_what_an_extractor_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        feature_extractor(network(), **arguments)


def test_an_extractor_has_the_endpoints_it_was_made_for():
    extractor = feature_extractor(network(), endpoints="stage2")
    with pytest.raises(ValueError, match=r"one of \['stage2'\]"):
        extract(extractor, noise(1))
    assert extract(extractor, noise(1), "stage2", batch_size=1).vectors.shape == (1, 8)


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), "uint8")


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder of ten made-up images in three classes; two of its files hold something else."""
    root = tmp_path / "images"
    for number, image in enumerate(noise(10)):
        path = root / CLASSES[number // 4] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    (root / "ants" / "3x.png").write_bytes(b"no image")
    (root / "wasps" / "cut.png").write_bytes(encoded(noise(1)[0])[:100])
    return root


LABELS = np.arange(10) // 4


def test_equal_pixels_give_equal_vectors_to_the_bit(folder):
    """By array, folder, list of files, Dataset of files or Stream, without what cannot be read, in partial batches."""
    model, pixels = network(), noise(10)
    expected = extract(model, pixels, batch_size=4)
    files = [encoded(image) for image in pixels]

    def examples(seed):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(([*files[:3], b"no image", *files[3:]], [0, 0, 0, 7, *LABELS[3:]]))

    sources = {
        "folder": folder,
        "files": sorted(folder.rglob("*.png")),
        "split": Split(pixels, LABELS),
        "dataset": Dataset("x", None, Split(np.array(files, object), LABELS), CLASSES, LOOK),
        "stream": Stream(examples, 11),
    }
    for name, source in sources.items():
        found = extract(model, source, batch_size=4, skip_bad=True)
        np.testing.assert_array_equal(found.vectors, expected.vectors, err_msg=name)
        assert found.labels.tolist() == ([-1] * 10 if name == "files" else LABELS.tolist())
    for start in (0, 3):
        alone = extract(model, pixels[start : start + 2], batch_size=4).vectors
        np.testing.assert_array_equal(alone, expected.vectors[start : start + 2])
    assert expected.names == tuple(map(str, range(10)))
    kernel, bias = model.get_layer("predictions").get_weights()
    scores = np.exp(expected.vectors @ kernel + bias)
    own = model.predict(LOOK(pixels), verbose=0)
    np.testing.assert_allclose(scores / scores.sum(axis=1, keepdims=True), own, atol=1e-5)


def test_the_network_sees_full_batches_and_every_image_at_its_place(folder):
    """A network that answers with the place of each image in its batch, and the size of that."""
    inputs = keras.Input((32, 32, 3))
    ones = keras.ops.ones_like(keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(1, 1)(inputs)))
    size = keras.ops.sum(ones, axis=0, keepdims=True) * ones
    model = keras.Model(inputs, keras.ops.concatenate([keras.ops.cumsum(ones, axis=0), size], axis=1))
    model.info = {"preprocessing": LOOK.to_config()}
    for source, places in ((noise(10), [1, 2, 3, 4] * 2 + [1, 2]), (folder, [1, 2, 3, 4, 2, 3, 4, 1, 2, 3])):
        found = extract(model, source, batch_size=4, skip_bad=True).vectors
        np.testing.assert_array_equal(found, [[place, 4] for place in places])


def test_a_folder_names_its_images_and_classes(folder, tmp_path):
    model = network()
    with pytest.raises(ValueError, match=r"(?s)--skip-bad.*ants/3x.png: Expected an image"):
        extract(model, folder, batch_size=4)
    found = extract(model, folder, batch_size=4, skip_bad=True)
    assert found.names[:5] == ("ants/0.png", "ants/1.png", "ants/2.png", "ants/3.png", "bees/4.png")
    assert found.class_names == CLASSES and [text.split(":")[0] for text in found.left_out] == [
        "ants/3x.png",
        "wasps/cut.png",
    ]
    flat = extract(model, folder / "bees", batch_size=4)
    assert flat.labels.tolist() == [-1] * 4 and flat.class_names == ()
    (tmp_path / "parts").mkdir()
    folder.rename(tmp_path / "parts" / "train")
    parts = extract(model, tmp_path / "parts", batch_size=4, skip_bad=True)
    assert parts.class_names == CLASSES and parts.names[0] == "train/ants/0.png"


def test_sources_without_images(tmp_path):
    model = network()
    (tmp_path / "bad.png").write_bytes(b"")
    for source, message in ((tmp_path, "none of 1"), (noise(0), "none of 0"), ([], "none of 0")):
        with pytest.raises(ValueError, match=message):
            extract(model, source, skip_bad=True)
    with pytest.raises(FileNotFoundError):
        extract(model, tmp_path / "nowhere")
    for source in (None, 5, [noise(1)[0]], [None]):
        with pytest.raises(ValueError, match="`images` should be a folder.*Received: images="):
            extract(model, source)
    wrong = {"pooling": None, "endpoint": "stage9", "batch_size": 0}
    for name, given in [*wrong.items(), ("endpoint", ("stem", "stage1")), ("batch_size", 1.5), ("model", None)]:
        with pytest.raises(ValueError, match=rf"should be.*Received: {name}s?="):
            extract(**{"model": model, "images": noise(1), name: given})


def test_no_number_is_no_feature():
    model = network()
    beta = model.get_layer("conv4_block1_2_bn").beta
    beta.assign(np.full(beta.shape, np.inf))
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        extract(model, noise(1), batch_size=1)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_vectors_in_a_file(folder, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    model, out, seen = network(), tmp_path / f"out{suffix}", []
    about = write_features(model, folder, out, batch_size=4, progress=lambda *done: seen.append(done))
    assert seen == [(0, 12), (4, 12), (8, 12), (12, 12)] and about["shape"] == [10, 16]
    expected, found = extract(model, folder, batch_size=4, skip_bad=True), read_features(out)
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert (found.names, found.class_names, found.left_out) == (
        expected.names,
        expected.class_names,
        expected.left_out,
    )
    assert found.settings == about == write_features(model, folder, out, batch_size=4)  # done already
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "images"]
    if suffix == ".npz":
        with np.load(out, allow_pickle=False) as file:
            assert set(file) == {"features", "names", "labels", "class_names", "settings"}
            assert json.loads(str(file["settings"]))["weights"] == "seed 0"


def test_a_file_of_other_features_is_kept_unless_it_is_to_be_replaced(folder, tmp_path):
    out = tmp_path / "out.npz"
    write_features(network(), folder, out, batch_size=4)
    before = out.read_bytes()
    with in_precision("mixed_bfloat16"):
        rounding = network()
    for model, settings, name in (
        (network(seed=1), {}, "weights was 'seed 0'"),
        (rounding, {}, "precision was 'float32' there. Received: precision='mixed_bfloat16'"),
        (network(), {"endpoint": "stage2"}, "endpoint was 'pre_logits'"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*--overwrite"):
            write_features(model, folder, out, batch_size=4, **settings)
    (folder / "new.png").write_bytes(encoded(noise(1)[0]))
    with pytest.raises(ValueError, match="files was 12 there. Received: files=13"):
        write_features(network(), folder, out, batch_size=4)
    assert out.read_bytes() == before
    write_features(network(), folder, out, batch_size=4, overwrite=True)
    assert read_features(out).labels.tolist() == [*LABELS[:8], -1, *LABELS[8:]]  # one without a class folder


KILLED = """
import os, signal, sys
import test_features as tests

def kill(done, total):
    if done == 8:
        os.kill(os.getpid(), signal.SIGKILL)

tests.write_features(tests.network(), sys.argv[1], sys.argv[2], batch_size=4, progress=kill)
"""


def test_after_sigkill_it_goes_on_and_the_file_is_the_same(folder, tmp_path):
    whole, out, seen = tmp_path / "whole.npz", tmp_path / "out.npz", []
    write_features(network(), folder, whole, batch_size=4)
    command = [sys.executable, "-c", KILLED, str(folder), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / "out.npz.partial").is_dir()
    with pytest.raises(ValueError, match="endpoint was 'pre_logits'"):
        write_features(network(), folder, out, "stage3", batch_size=4)
    with open(tmp_path / "out.npz.partial" / "rows.float32", "ab") as rows:  # as if it had died while writing
        rows.write(b"half a row")
    with open(tmp_path / "out.npz.partial" / "journal.jsonl", "ab") as journal:
        journal.write(b'[12, {"9": "')
    write_features(network(), folder, out, batch_size=4, progress=lambda *done: seen.append(done[0]))
    assert seen == [8, 12] and members(out) == members(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "images", "whole.npz"]


@pytest.mark.parametrize(
    "line", [b"5", b"[1, 2]", b"[12, []]", b"[8, {}]", b"[9, {}]", b"[99, {}]", b'[12, {"1": "of another batch"}]']
)
def test_a_journal_counts_as_far_as_it_is_one(folder, tmp_path, line, extractor):
    out, seen = tmp_path / "out.npz", []

    def stop(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(extractor, folder, out, batch_size=4, progress=stop)
    for name, more in (("journal.jsonl", line + b"\n"), ("rows.float32", bytes(10_000))):
        with open(tmp_path / "out.npz.partial" / name, "ab") as file:
            file.write(more)
    write_features(extractor, folder, out, batch_size=4, progress=lambda *done: seen.append(done[0]))
    assert seen == [8, 12]
    np.testing.assert_array_equal(read_features(out).vectors, extract(extractor, noise(10), batch_size=4).vectors)


@pytest.fixture(scope="module")
def extractor():
    return feature_extractor(network(), endpoints="pre_logits", pooling="avg")


def test_one_process_at_a_time_writes_a_file(folder, tmp_path, extractor):
    out, said = tmp_path / "out.npz", []

    def meanwhile(done, total):
        for overwrite in (False, True):
            with pytest.raises(OSError, match="no other process writes") as refusal:
                write_features(extractor, folder, out, batch_size=4, overwrite=overwrite)
            said.append(str(refusal.value))

    write_features(extractor, folder, out, batch_size=4, progress=meanwhile)
    assert len(said) == 8 and said[0].endswith(f"Received: out={str(out)!r}")
    found = read_features(out).vectors
    np.testing.assert_array_equal(found, extract(extractor, noise(10), batch_size=4).vectors)
    assert not (tmp_path / "out.npz.partial").exists()


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_place_that_cannot_be_written(folder, tmp_path):
    for name, error in (("out.csv", ValueError), ("nowhere/out.npz", OSError), ("images/", ValueError)):
        with pytest.raises(error):
            write_features(network(), folder, tmp_path / name)
    with pytest.raises(NotADirectoryError, match="Expected a folder of images"):
        write_features(network(), folder / "ants" / "0.png", tmp_path / "out.npz")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 12"):
        write_features(network(), folder, tmp_path / "out.npz", batch_size=4)
    assert not (tmp_path / "out.npz").exists()


def saved(**changes):
    """A .npz of two vectors, with some arrays replaced, as bytes."""
    usual = {
        "features": np.zeros((2, 3), "float32"),
        "names": np.array(["a", "b"]),
        "labels": np.zeros(2, "int32"),
        "class_names": np.array(["x"]),
        "settings": np.array("{}"),
    }
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in (usual | changes).items() if array is not None})
    return file.getvalue()


def claiming(shape, before=(2, 3)):
    """A .npz whose vectors say that they have another shape."""
    content = saved()
    as_text = [f"{size}, }}".encode() for size in (before, shape)]
    return content.replace(as_text[0] + b" " * (len(as_text[1]) - len(as_text[0])), as_text[1])


HOSTILE = {
    "empty": b"",
    "text": b"no zip file",
    "half": saved()[:300],
    "pickle": saved(names=np.array(["a", {}], object)),
    "missing": saved(labels=None),
    "numbers": saved(features=np.zeros((2, 3), "int64")),
    "axes": saved(features=np.zeros((2, 3, 1), "float32")),
    "nothing": saved(features=np.zeros((10**9, 0), "float32")),
    "rows": saved(names=np.array(["a"])),
    "labels": saved(labels=np.array([0, 1])),
    "JSON": saved(settings=np.array("[" * 100_000)),
    "list": saved(settings=np.array("[]")),
    "left out": saved(settings=np.array('{"left_out": 5}')),
    "left out too": saved(settings=np.array('{"left_out": [5]}')),
    "shape": saved(settings=np.array('{"shape": "23"}')),
    "larger": claiming((2, 3 * 10**12)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path):
    path = tmp_path / "in.npz"
    path.write_bytes(saved())
    assert read_features(path).vectors.shape == (2, 3)
    assert HOSTILE[name] != saved()
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match="Expected features as `keras-resnet features` writes them"):
        read_features(path)


def test_hostile_parquet_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path, vectors = tmp_path / "in.parquet", pyarrow.list_(pyarrow.float32(), 3)
    whole = {"features": [[0.0] * 3] * 2, "names": ["a", "b"], "labels": [0, 0]}
    metadata = {"keras_resnet": json.dumps({"class_names": ["x"]})}

    def write(changes=(), vectors=vectors, metadata=metadata, texts=None, **options):
        types = {"features": vectors, "names": texts or pyarrow.string(), "labels": pyarrow.int32()}
        table = pyarrow.table(whole | dict(changes), schema=pyarrow.schema(types, metadata=metadata))
        parquet.write_table(table, path, **{"compression": "none", "use_dictionary": False} | options)

    write()
    assert read_features(path).names == ("a", "b")
    for arguments in (
        {"use_dictionary": True},
        {"compression": "snappy"},
        {"metadata": None},
        {"metadata": {"keras_resnet": '{"class_names": [5]}'}},
        {"metadata": {"keras_resnet": '{"class_names": ["x"], "left_out": 5}'}},
        {"texts": pyarrow.list_(pyarrow.string()), "changes": {"names": [["a"], ["b"]]}},
        {"texts": pyarrow.binary()},
        {"changes": {"names": ["a", None]}},
        {"changes": {"labels": [0, 1]}},
        {"vectors": pyarrow.list_(pyarrow.float32())},
        {"vectors": pyarrow.list_(pyarrow.int64(), 3), "changes": {"features": [[0] * 3] * 2}},
    ):
        write(**arguments)
        with pytest.raises(ValueError, match="Expected features"):
            read_features(path)
    write()
    path.write_bytes(path.read_bytes()[:-20] + path.read_bytes()[-8:])  # a footer that ends too soon
    with pytest.raises(ValueError, match=r"Expected features.*in\.parquet"):
        read_features(path)
    long = ["a" * 5_000, *["b"] * 999]  # 20 MB, if each took as much as the longest
    write(
        {"features": [[0.0] * 3] * 1_000, "names": long, "labels": [999] * 1_000},
        metadata={"keras_resnet": json.dumps({"class_names": long})},
    )
    tracemalloc.start()
    found = read_features(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6 and list(found.names) == list(found.class_names) == long
    tracemalloc.stop()


def test_parquet_without_pyarrow_says_how_to_get_it(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        write_features(network(), folder, tmp_path / "out.parquet")


def clusters(count, seed=0, numbers=8, distance=6.0):
    """Vectors in three clusters, far from each other, and their classes."""
    generator = np.random.default_rng(seed)
    centres = distance * np.eye(3, numbers)
    labels = np.arange(count) % 3
    return (centres[labels] + generator.normal(size=(count, numbers))).astype("float32"), labels


def test_a_linear_probe_finds_what_is_linearly_separable():
    (train, labels), (test, expected) = clusters(90), clusters(60, seed=1)
    scales = np.logspace(-6, 6, 8, dtype="float32")  # standardised away
    probe = linear_probe(train * scales, labels, test * scales, expected)
    assert probe.accuracy == 100 * (probe.predicted == expected).mean() >= 98
    shuffled = np.random.default_rng(0).permutation(labels)
    assert linear_probe(train, shuffled, test, expected).accuracy < 70
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    near = clusters(300, distance=2.0), clusters(300, seed=1, distance=2.0)
    optimal = 100 * LinearDiscriminantAnalysis().fit(*near[0]).score(*near[1])  # for normal distributions
    assert abs(linear_probe(*near[0], *near[1]).accuracy - optimal) < 3


def test_neighbours_are_numpys():
    (train, labels), (test, expected) = clusters(60, distance=2.0), clusters(30, seed=1, distance=2.0)
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (test, train)]
    cosines = unit[0] @ unit[1].T
    order = np.argsort(-cosines, axis=1)
    votes = [np.bincount(labels[row[:7]], minlength=3).argmax() for row in order]
    probe = nearest_neighbours(train, labels, test, expected, k=7)
    assert probe.predicted.tolist() == votes and probe.accuracy == 100 * (np.array(votes) == expected).mean()
    names = [f"{number}.png" for number in range(60)]
    for number, row in enumerate(nearest_images(test, 5 * train, names, k=3)):
        assert [name for name, _ in row] == [names[n] for n in order[number, :3]]
        np.testing.assert_allclose([cosine for _, cosine in row], cosines[number, order[number, :3]], atol=1e-5)


def test_a_map_keeps_clusters_together(tmp_path):
    from sklearn.metrics import silhouette_score

    vectors, labels = clusters(90, numbers=60)
    points = feature_map(vectors)
    assert points.shape == (90, 2) and silhouette_score(points, labels) > 0.6
    assert feature_map(vectors[:4]).shape == (4, 2)
    for shown in (labels, labels - 1):
        draw_feature_map(points, shown, CLASSES, tmp_path / "map.png", "a map")
        with Image.open(tmp_path / "map.png") as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 3
    with pytest.raises(ValueError, match="a label each that has a name"):
        draw_feature_map(points, labels + 9, CLASSES, tmp_path / "other.png")


def test_what_cannot_be_probed():
    vectors, labels = clusters(30)
    for arguments, message in (
        ((vectors, labels * 0, vectors, labels), "two classes at least"),
        ((vectors, labels, vectors, labels + 1), r"Received: \[3\], which are none there"),
        ((vectors, labels - 1, vectors, labels), "integers from 0"),
        ((vectors, labels[1:], vectors, labels), "`train_labels` should be 30 integers"),
        ((vectors, labels, vectors[:, :4], labels), "same D"),
        ((vectors * np.nan, labels, vectors, labels), "finite"),
        ((vectors[:, 0], labels, vectors, labels), r"should be \(N, D\)"),
    ):
        for probe in (linear_probe, nearest_neighbours):
            with pytest.raises(ValueError, match=message):
                probe(*arguments)
    with pytest.raises(ValueError, match="each class twice"):
        linear_probe(vectors[:4], labels[:4], vectors, labels)
    for k in (0, 31, 1.5):
        with pytest.raises(ValueError, match="`k` should be from 1 to 30"):
            nearest_neighbours(vectors, labels, vectors, labels, k)
    with pytest.raises(ValueError, match="`names` should be 30"):
        nearest_images(vectors, vectors, ["a"])
    for few in (vectors[:3], vectors[:, :1], vectors * 0):
        with pytest.raises(ValueError, match="four at least"):
            feature_map(few)


@pytest.fixture(scope="module")
def cifar10(test_data):
    """(5,000 training images, 2,000 test images): Datasets of tensorflow-datasets."""
    if not (test_data / "tfds" / "cifar10").is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA has no tfds/cifar10")
    from keras_resnet.data.sources import load_test

    parts = ("train[:5000]", "test[:2000]")
    return [load_test("cifar10", part, test_data / "tfds", download=False) for part in parts]


@pytest.fixture
def resnet20(test_data):
    return create("resnet20", weights=test_data / "cifar10_weights" / "resnet20-12fca82f.th")


@pytest.mark.slow
def test_a_linear_probe_is_as_good_as_the_network(cifar10, resnet20):
    """Of github.com/akamaster/pytorch_resnet_cifar10, 8.27 % on all 10,000 test images."""
    train, test = (extract(resnet20, part) for part in cifar10)
    scores = resnet20.predict(preprocessing(resnet20)(cifar10[1].test.images), batch_size=100, verbose=0)
    own = 100 * (scores.argmax(axis=1) == test.labels).mean()
    arguments = train.vectors, train.labels, test.vectors, test.labels
    assert abs(linear_probe(*arguments).accuracy - own) <= 1 and 90 < own < 93
    assert abs(nearest_neighbours(*arguments).accuracy - own) <= 2


def test_by_folder_by_tfds_and_by_array_real_images_give_the_same(cifar10, resnet20, tmp_path):
    some = replace(cifar10[1], test=cifar10[1].test[:60])
    order = np.argsort(some.test.labels, kind="stable")
    for number in order:
        path = tmp_path / some.class_names[some.test.labels[number]] / f"{number:05d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(some.test.images[number]))
    by_tfds, by_folder, by_array = (extract(resnet20, x, batch_size=32) for x in (some, tmp_path, some.test.images))
    np.testing.assert_array_equal(by_tfds.vectors, by_array.vectors)
    np.testing.assert_array_equal(by_tfds.vectors[order], by_folder.vectors)
    np.testing.assert_array_equal(by_tfds.labels[order], by_folder.labels)
    assert by_folder.class_names == by_tfds.class_names
