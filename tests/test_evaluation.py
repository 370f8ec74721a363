"""Evaluation against plain loops over crops and windows, scikit-learn's metrics and Wilson's formula."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import top_k_accuracy_score
from support import randomize_weights

from keras_resnet import create, evaluate, from_arrays, predict, preprocess_input
from keras_resnet.data.datasets import Dataset, Split, Stream
from keras_resnet.data.labels import imagenet_classes
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.protocols import Protocol
from keras_resnet.data.sources import load_test
from keras_resnet.evaluation import batch_probabilities
from keras_resnet.evaluation_results import Evaluation, check_confusion, plot_confusion
from keras_resnet.models.transforms import fully_convolutional
from keras_resnet.prediction import predict_probabilities
from keras_resnet.transfer import extract

IMAGENET = Preprocessing("torch", size=64, resize=72)


def network(size=64, classes=10, preprocessing=IMAGENET, seed=0, **changes):
    """A small model with random weights and a preprocessing."""
    changes = {"depths": (1, 1, 1, 1), "widths": (8, 16, 16, 24), "stem_width": 8} | changes
    model = randomize_weights(create("resnet18", input_shape=(size, size, 3), classes=classes, **changes), seed)
    kernel, bias = model.get_layer("predictions").get_weights()
    model.get_layer("predictions").set_weights([0.1 * kernel, 0.1 * bias])  # small logits: no class is certain
    model.info = {"preprocessing": preprocessing.to_config()}
    return model


def all_probabilities(models, dataset, *protocol, **changes):
    """(N, K) probabilities of a dataset's test images."""
    models = models if isinstance(models, list) else [models]
    return np.concatenate([part for _, part in batch_probabilities(models, dataset, *protocol, **changes)])


def balanced_network(dataset):
    """A model that predicts every class equally often, on average over a dataset."""
    model = network()
    kernel, bias = model.get_layer("predictions").get_weights()
    log_means = np.log(all_probabilities(model, dataset)).mean(axis=0)
    model.get_layer("predictions").set_weights([kernel, bias - log_means])
    return model


@pytest.fixture(scope="module")
def photographs(test_data):
    """A Dataset of the 50 photographs, as paths, with made-up labels."""
    paths = sorted(str(path) for path in (test_data / "imagenet_sample").glob("*.JPEG"))
    names = tuple(f"class {number}" for number in range(10))
    return Dataset("photographs", None, Split(np.array(paths), np.arange(50) % 10), names, IMAGENET)


def read_resized(path, shorter):
    """A photograph with a shorter side of `shorter` pixels, read without this package: (H, W, 3) uint8."""
    image = Image.open(path).convert("RGB")
    sides = [max(shorter, int(shorter * side / min(image.size))) for side in image.size]
    return np.asarray(image.resize(sides, Image.Resampling.BILINEAR))


def predict_crop(model, crop):
    """Probabilities of one crop."""
    normalised = (crop / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return model.predict_on_batch(normalised[None].astype("float32"))[0]


def test_ten_crops_are_the_mean_of_ten_crops(photographs):
    """A loop over crops, one by one, on real photographs."""
    model = balanced_network(photographs)
    expected = []
    for path in photographs.test.images:
        pixels = read_resized(path, 72)
        bottom, right = pixels.shape[0] - 64, pixels.shape[1] - 64
        places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
        crops = [pixels[top : top + 64, left : left + 64] for top, left in places]
        expected.append(
            np.mean([predict_crop(model, crop) for whole in crops for crop in (whole, whole[:, ::-1])], axis=0)
        )
    found = all_probabilities(model, photographs, "ten_crop", 37)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.max() < 0.9 and len(set(found.argmax(axis=1))) > 2


def body_of(model):
    """The model up to its last feature map, for images of any size."""
    spec = model.spec
    changes = {"depths": spec.depths, "widths": spec.widths, "stem_width": spec.stem_width}
    body = create("resnet18", input_shape=(None, None, 3), include_top=False, **changes)
    body.set_weights(model.get_weights()[:-2])
    return body


def classify_features(model, features):
    """Probabilities of part of a feature map: (h, w, C) -> (K,)."""
    kernel, bias = model.get_layer("predictions").get_weights()
    powers = np.exp(features.mean(axis=(0, 1), dtype="float64") @ kernel + bias)
    return powers / powers.sum()


def test_multi_scale_is_the_mean_over_scales_mirrors_and_windows(photographs):
    """A loop over scales, mirrors and windows, one by one."""
    model, some = network(), photographs.test[::5]
    body, expected = body_of(model), []
    for path in some.images:
        shares = []
        for scale in (64, 96, 130):
            pixels = (read_resized(path, scale) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            for view in (pixels, pixels[:, ::-1]):
                (features,) = body.predict_on_batch(view[None].astype("float32"))
                height, width = features.shape[0] - 1, features.shape[1] - 1
                places = [(top, left) for top in range(height) for left in range(width)]
                parts = [features[top : top + 2, left : left + 2] for top, left in places]
                shares.append(np.mean([classify_features(model, part) for part in parts], axis=0))
        expected.append(np.mean(shares, axis=0))
    dataset = Dataset("some", None, some, photographs.class_names, IMAGENET)
    found = all_probabilities(model, dataset, "multi_scale", scales=(64, 96, 130))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("black", [0, 24])
def test_fully_convolutional_is_dense_sliding(photographs, black):
    """Compared with a loop over windows of the image, each with the surroundings that its features depend on."""
    model = network(32, depths=(1, 1), widths=(8, 16))
    body, stride, side, margin = body_of(model), 8, 32, 64
    photograph = np.pad(read_resized(photographs.test.images[7], 72), ((black, black), (black, black), (0, 0)))
    image = preprocess_input(photograph[None], "torch")
    height, width = image.shape[1:3]
    assert height != width and width % stride
    shares = []
    for top in range(0, -(-height // stride) * stride - side + 1, stride):
        for left in range(0, -(-width // stride) * stride - side + 1, stride):
            above, before = min(top, margin), min(left, margin)
            around = image[:, top - above : top + side + margin, left - before : left + side + margin]
            (features,) = body.predict_on_batch(around)
            rows, columns = (slice(start // stride, (start + side) // stride) for start in (above, before))
            shares.append(classify_features(model, features[rows, columns]))
    assert len(shares) > 20
    found = predict_probabilities(fully_convolutional(model, side), image)[0]
    np.testing.assert_allclose(found, np.mean(shares, axis=0), atol=1e-5)


@pytest.mark.portable
@pytest.mark.parametrize("activation", ["softmax", None])
def test_fully_convolutional_equals_the_model_on_images_of_its_own_size(activation):
    model = network(classifier_activation=activation)
    inputs = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(
        predict_probabilities(fully_convolutional(model, 64), inputs), predict_probabilities(model, inputs), atol=1e-6
    )


def models_without_a_pooled_classifier():
    layers, inputs = keras.layers, keras.Input((8, 8, 3))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(inputs)
    pooled = layers.GlobalAveragePooling2D()(inputs)
    yield keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    yield keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs * layers.Dense(3)(gate))))
    yield keras.Model(inputs, layers.Dense(3)(layers.BatchNormalization()(pooled)))
    yield keras.Model(inputs, pooled)


@pytest.mark.parametrize("number", range(4))
def test_only_models_that_end_in_pooling_and_a_classifier_can_be_fully_convolutional(number):
    with pytest.raises(ValueError, match="global average pooling"):
        fully_convolutional(list(models_without_a_pooled_classifier())[number], 8)


def test_channels_first_models_of_others_evaluate_predict_and_extract_like_their_channels_last_twin(noise, tmp_path):
    """Models without a spec: the data format is read from their layers."""

    def build(data_format):
        shape = {"channels_last": (64, 64, 3), "channels_first": (3, 64, 64)}[data_format]
        inputs = keras.Input(shape)
        x = keras.layers.Rescaling(0.5)(inputs)
        x = keras.layers.Conv2D(8, 3, 2, activation="relu", data_format=data_format, name="conv2_block1_out")(x)
        x = keras.layers.GlobalAveragePooling2D(data_format=data_format)(x)
        model = keras.Model(inputs, keras.layers.Dense(10, "softmax")(x))
        model.info = {"preprocessing": IMAGENET.to_config()}
        return model

    last, first = build("channels_last"), build("channels_first")
    first.set_weights(randomize_weights(last).get_weights())
    for protocol, changes in (("flip", {}), ("multi_scale", {"scales": (64, 80)})):
        expected = all_probabilities(last, noise, protocol, **changes)
        np.testing.assert_allclose(all_probabilities(first, noise, protocol, **changes), expected, atol=1e-6)
    np.testing.assert_array_equal(evaluate(first, noise).predicted, evaluate(last, noise).predicted)
    Image.fromarray(noise.test.images[0]).save(tmp_path / "image.png")
    ((expected,), (found,)) = ([answer.classes for answer in predict(model, tmp_path)] for model in (last, first))
    assert [name for _, name, _ in found] == [name for _, name, _ in expected]
    np.testing.assert_allclose([p for *_, p in found], [p for *_, p in expected], rtol=1e-5)
    vectors = [extract(model, noise.test.images).vectors for model in (last, first)]
    np.testing.assert_allclose(*vectors, rtol=1e-5)


@pytest.fixture(scope="module")
def noise():
    """A Dataset of 60 random images in ten classes."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (60, 64, 64, 3), "uint8"), np.arange(60) % 10
    return from_arrays((images, labels), (images, labels), preprocessing=Preprocessing("torch", 64, None))


def test_an_ensemble_averages_probabilities_with_the_preprocessing_of_each_model(noise):
    grey = Preprocessing("tf", size=64, resize=80)
    models = [network(seed=1), network(seed=2, preprocessing=grey), network(seed=3)]
    separately = [all_probabilities(model, noise, "flip") for model in models]
    together = all_probabilities(models, noise, "flip", batch_size=7)
    np.testing.assert_allclose(together, np.mean(separately, axis=0), atol=1e-6)


@pytest.mark.portable
def test_errors_equal_those_of_scikit_learn(noise):
    model = balanced_network(noise)
    shares = all_probabilities(model, noise)
    result, labels = evaluate(model, noise), noise.test.labels
    assert len(set(result.predicted)) > 2
    for k in (1, 5):
        assert result.error(k) == pytest.approx(1 - top_k_accuracy_score(labels, shares, k=k))
    assert (result.num_images, result.top1_error, result.top5_error) == (60, result.error(1), result.error(5))
    assert result.confusion.sum() == 60 and np.trace(result.confusion) == 60 - result.num_wrong(1)
    for row, number in zip(result.by_class, range(10), strict=True):
        assert row["num_images"] == 6
        assert row["top1_error"] == pytest.approx((shares.argmax(1) != labels)[labels == number].mean())


def test_equal_probabilities_count_for_the_first_class_only():
    """A model with equal probabilities for all classes is right for one class in ten."""
    result = evaluate(constant_model(), ten_black_images())
    assert (result.top1_error, result.top5_error) == (0.9, 0.5)


def constant_model(value=0.1):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    x = keras.layers.Dense(10, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(value))(x)
    model = keras.Model(inputs, keras.layers.Activation("sigmoid")(x))
    model.info = {"preprocessing": Preprocessing("torch", 8, None).to_config()}
    return model


def ten_black_images():
    arrays = np.zeros((10, 8, 8, 3), "uint8"), np.arange(10)
    return from_arrays(arrays, arrays)


def test_nan_probabilities_raise_an_error():
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        evaluate(constant_model(float("nan")), ten_black_images())


def test_the_interval_is_wilsons_score_interval():
    """Brown, Cai and DasGupta 2001, eq. 4, for 80 of 1000."""
    ranks = np.repeat([0, 1], [920, 80])
    result = Evaluation((("a", "a"), ("b", "b")), ranks * 0, ranks, ranks)
    z, p, n = 1.959964, 0.08, 1000
    middle, reach = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(result.interval(1), [(middle + s * reach) / (1 + z**2 / n) for s in (-1, 1)], rtol=1e-6)
    assert result.interval(5)[0] == 0


def test_a_stream_gives_the_same_result_as_a_split(noise):
    files = [encode_png(image) for image in noise.test.images]
    in_memory = Split(np.array(files, object), noise.test.labels)

    def examples(seed):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((files, noise.test.labels))

    model = balanced_network(noise)
    results = [
        evaluate(model, Dataset("x", None, test, noise.class_names, IMAGENET), batch_size=16).to_json()
        for test in (in_memory, Stream(examples, 60))
    ]
    assert results[0] == results[1]


def encode_png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_unreadable_images_raise_an_error_or_are_skipped_and_counted(noise):
    files = [encode_png(image) for image in noise.test.images[:20]]
    files[3], files[17] = b"no image", files[17][:40]
    dataset = Dataset("x", None, Split(np.array(files, object), noise.test.labels[:20]), noise.class_names, IMAGENET)
    model = balanced_network(noise)
    with pytest.raises(ValueError, match="(?s)--skip-bad.*image 3: Expected an image"):
        evaluate(model, dataset, batch_size=8)
    done = []
    result = evaluate(model, dataset, batch_size=8, skip_bad=True, progress=done.append)
    assert done == [8, 16, 20] and result.num_images == 18
    assert [line[:8] for line in result.skipped] == ["image 3:", "image 17"]
    kept = [number for number in range(20) if number not in (3, 17)]
    whole = evaluate(model, Dataset("x", None, dataset.test[kept], noise.class_names, IMAGENET))
    np.testing.assert_array_equal(result.predicted, whole.predicted)
    np.testing.assert_array_equal(result.ranks, whole.ranks)
    only_bad = Dataset("x", None, dataset.test[[3, 17]], noise.class_names, IMAGENET)
    with pytest.raises(ValueError, match="none of 2"):
        evaluate(model, only_bad, skip_bad=True)


IDS = [wnid for wnid, _ in imagenet_classes()]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (IDS[7:9], [7, 8]),
        (("goldfish", "hen"), [1, 8]),
        (IDS[::-1], list(range(999, -1, -1))),
        ([f"class {number}" for number in range(20)], list(range(1000))),
        (None, list(range(1000))),
    ],
)
def test_labels_are_matched_to_classes_by_id_or_name(names, numbers):
    """A dataset with a few of ImageNet's classes is evaluated with all thousand."""
    model = network(classes=1000, widths=(4, 4, 4, 4))
    labels = np.arange(min(len(names or IDS), 20))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 64, 64, 3), "uint8")
    result = evaluate(model, Dataset("x", None, Split(images, labels), names and tuple(names), IMAGENET))
    assert result.labels.tolist() == numbers[: len(labels)]


def test_numbered_folders_are_matched_by_index_where_the_model_has_no_class_names():
    """Folders 0, 1, 10, 2 are sorted by name."""
    test = Split(np.zeros((4, 64, 64, 3), "uint8"), np.arange(4))
    dataset = Dataset("x", None, test, ("0", "1", "10", "2"), IMAGENET)
    assert evaluate(network(classes=12), dataset).labels.tolist() == [0, 1, 10, 2]
    with pytest.raises(ValueError, match="model's 1000 classes; 4 of 4 are not"):
        evaluate(network(classes=1000, widths=(4, 4, 4, 4)), dataset)


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (10, tuple("abcde"), "model's 10 classes; 5 of 5 are not"),
        (10, ("3", "10"), "from 0 to 9. Received: 10"),
        (1000, ("tench", "goldfishes"), r"Nearest: \['goldfish'.*Received: labels='goldfishes'"),
        (10, None, "Labels should be from 0 to 9.*Received: 12"),
        (1000, ("crane", "tench"), "Received: labels='crane'"),  # the name of two classes
    ],
)
def test_labels_that_are_not_classes_of_the_model(classes, names, message):
    model = network(classes=classes, widths=(4, 4, 4, 4))
    test = Split(np.zeros((2, 64, 64, 3), "uint8"), np.array([0, 1 if names else 12]))
    with pytest.raises(ValueError, match=message):
        evaluate(model, Dataset("x", None, test, names, IMAGENET))


def test_matching_names_to_numbered_classes_by_order_warns(noise):
    model = network()
    model.info["class_names"] = [str(number) for number in range(10)]
    words = replace(noise, class_names=tuple("abcdefghij"))
    with pytest.warns(UserWarning, match="class 0 is taken as 'a'"):
        assert evaluate(model, words).num_images == 60
    few = replace(noise, train=None, test=replace(noise.test[:2], labels=np.array([0, 1])), class_names=("7", "3"))
    assert evaluate(model, few).labels.tolist() == [7, 3]


def test_models_with_imagenet_ids_and_names_form_an_ensemble(noise):
    models = [network(classes=1000, widths=(4, 4, 4, 4)) for _ in range(3)]
    models[1].info["class_names"], models[2].info["class_names"] = map(list, zip(*imagenet_classes(), strict=True))
    tench = replace(
        noise, train=None, test=replace(noise.test, labels=noise.test.labels * 0), class_names=("n01440764",)
    )
    assert evaluate(models, tench).classes == imagenet_classes()


def test_models_with_different_image_sizes_form_an_ensemble(photographs):
    small = network(40, preprocessing=Preprocessing("tf", 40, 50))
    together = all_probabilities([network(), small], photographs, "ten_crop")
    separately = [all_probabilities(one, photographs, "ten_crop") for one in (network(), small)]
    np.testing.assert_allclose(together, np.mean(separately, axis=0), atol=1e-6)


def test_scales_are_evaluated_independently(noise):
    """Adding a small scale does not change the probabilities at the others."""
    first, second, both = (
        all_probabilities(network(), noise, "multi_scale", scales=scales) for scales in ((48,), (96,), (48, 96))
    )
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16"])
def test_images_of_every_mode_are_read_as_predict_reads_them(mode, photographs, tmp_path):
    with Image.open(photographs.test.images[0]) as image:
        grey = mode == "I;16"
        kind = "JPEG" if mode == "CMYK" else "PNG"
        (image.convert("L" if grey else mode)).convert(mode).save(tmp_path / "a.image", kind)
    model = network()
    test = Split(np.array([str(tmp_path / "a.image")]), np.zeros(1, int))
    found = all_probabilities(model, replace(photographs, test=test))
    np.testing.assert_allclose(found, predict_probabilities(model, IMAGENET([tmp_path / "a.image"])), atol=1e-6)


@pytest.mark.parametrize("name", ["seresnet18", "resnet50v2", "resnet18d"])
def test_other_families_can_be_fully_convolutional(name):
    model = randomize_weights(
        create(name, input_shape=(64, 64, 3), classes=5, depths=(1, 1, 1, 1), widths=(8, 8, 8, 8))
    )
    inputs = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    dense = fully_convolutional(model, 64)
    np.testing.assert_allclose(predict_probabilities(dense, inputs), predict_probabilities(model, inputs), atol=1e-6)
    assert predict_probabilities(dense, np.zeros((1, 70, 99, 3), "float32")).shape == (1, 5)


def test_ensembles_need_the_same_classes(noise):
    named, other = network(), network()
    named.info["class_names"], other.info["class_names"] = list("abcdefghij"), list("abcdefghik")
    assert evaluate([network(), named], noise).classes[0] == ("a", "a")
    with pytest.raises(ValueError, match=r"same 10 classes.*differ as \[\('j', 'k'\)\]"):
        evaluate([named, other], noise)
    with pytest.raises(ValueError, match="same 10 classes.*with 9 classes"):
        evaluate([named, network(classes=9)], noise)
    with pytest.raises(ValueError, match="at least one model"):
        evaluate([], noise)


def test_scales_smaller_than_the_model_accepts(noise):
    with pytest.raises(ValueError, match="at least 32 pixels"):
        evaluate(network(), noise, "multi_scale", scales=(16, 64))
    with pytest.raises(ValueError, match="at least 64 pixels"):
        evaluate(network(), noise, Protocol("corners", scales=(48,)))
    with pytest.raises(ValueError, match=r"Nearest: \['scales'\]"):
        evaluate(network(), noise, scale=96)
    assert Protocol(scales=np.int64(96)).scales == (96,)


def test_the_confusion_matrix_is_plotted_for_at_most_50_classes(noise, tmp_path):
    result = evaluate(network(), noise)
    check_confusion(10, tmp_path / "confusion.png")
    plot_confusion(result, tmp_path / "confusion.png")
    with pytest.raises(ValueError, match="`num_classes` should be at most 50"):
        check_confusion(51, tmp_path / "many.png")
    with pytest.raises(FileNotFoundError, match="folder of `path`"):
        check_confusion(10, tmp_path / "none" / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").size[0] > 300
    with pytest.raises(ValueError, match="`num_classes` should be at most 50"):
        plot_confusion(Evaluation((("a", "a"),) * 51, *[np.zeros(1, int)] * 3), tmp_path / "many.png")
    assert json.dumps(result.to_json()) and not (tmp_path / "many.png").exists()


def test_load_test_by_split_name():
    for split, count in ((None, 360), ("train", 1437)):
        assert len(load_test("digits", split).test) == count
    with pytest.raises(ValueError, match="`split` should be one of"):
        load_test("digits", "validation")


MEASURE_PEAK_MEMORY = """
import resource, sys
import tensorflow as tf
from keras_resnet import create, evaluate
from keras_resnet.data.datasets import Dataset, Stream
from keras_resnet.data.preprocessing import Preprocessing

count = int(sys.argv[1])

def image(index):
    noise = tf.random.stateless_uniform((64, 64, 3), (index, 0), 0, 256, "int32")
    return tf.io.encode_png(tf.cast(noise, "uint8")), tf.cast(index % 10, "int32")

stream = Stream(lambda seed: tf.data.Dataset.range(count).map(image), count)
preprocessing = Preprocessing("torch", 32, 32)
model = create("resnet20", depths=(1,), widths=(8,), stem_width=8)
model.info = {"preprocessing": preprocessing.to_config()}
result = evaluate(model, Dataset("noise", None, stream, None, preprocessing))
print(result.num_images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images():
    """50,000 images, 600 MB as inputs, need as much memory as 5,000, up to the noise of the allocator."""
    peaks = {}
    for count in (5_000, 50_000):
        words = [sys.executable, "-c", MEASURE_PEAK_MEMORY, str(count)]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        images, peaks[count] = map(int, done.stdout.split())
        assert images == count
    assert peaks[50_000] - peaks[5_000] < 2**16  # KiB
