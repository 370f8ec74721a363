"""`segment`: files, folders and images in memory -> the class of each pixel at the size of each image."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support import brightest_channel, cifar_network, png_bytes, small_localizer, small_segmenter

import keras_resnet
from keras_resnet import analysis, segment, transfer
from keras_resnet.data.image_files import ORIENTATION_TAG
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.protocols import SegmentationProtocol
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.models.preprocessing import class_names, colors, preprocessing, set_class_names
from keras_resnet.segmentation import Segmentation, as_segmenter, is_segmenter, most_probable

NAMES = ("sky", "road", "car", "tree", "person")


@pytest.fixture(scope="module")
def segmenter():
    """A small segmenter of five classes with random weights, whose images are resized to 40 pixels."""
    model = small_segmenter("deeplabv3")
    prepared = SegmentationPreprocessing("torch", shorter_side=40)
    model.info = {"preprocessing": prepared.to_config(), "class_names": list(NAMES)}
    return model


def pixels(height, width, seed=0):
    """An image of smooth random colours, of which any pixels can be told apart."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), "uint8")
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def resized_inputs(image, shorter):
    """torchvision's Resize of a PIL image, and the normalisation with ImageNet's mean and standard deviation."""
    height, width = image.shape[:2]
    scale = shorter / min(height, width)
    size = (shorter, int(scale * width)) if height <= width else (int(scale * height), shorter)
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((np.asarray(resized) / 255 - mean) / std).astype("float32")[None]


def softmax_of(model, inputs):
    return tf.nn.softmax(tf.convert_to_tensor(model(inputs))).numpy()


def enlarged(probabilities, size):
    """As torch's interpolate(align_corners=False), which TensorFlow's resize is."""
    return tf.image.resize(probabilities, size, "bilinear", antialias=False).numpy()[0]


def assert_same_classes(mask, expected):
    """The most probable classes, except for pixels in which two are equally probable but for rounding."""
    chosen = np.take_along_axis(expected, mask[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(chosen, expected.max(-1), atol=1e-5)
    assert (mask == expected.argmax(-1)).mean() > 0.99 and mask.dtype == np.uint8


@pytest.mark.parametrize("size", [(40, 60), (33, 80), (90, 61)])
def test_masks_are_of_resized_probabilities(segmenter, size):
    image = pixels(*size)
    (found,) = segment(image, segmenter)
    probabilities = softmax_of(segmenter, resized_inputs(image, 40))
    assert found.size == size and found.class_names == NAMES and len(found.classes) > 1
    assert_same_classes(found.mask, enlarged(probabilities, size))


def test_another_size_of_the_inputs(segmenter):
    image = pixels(50, 70)
    (found,) = segment(image, segmenter, size=25)
    assert_same_classes(found.mask, enlarged(softmax_of(segmenter, resized_inputs(image, 25)), (50, 70)))


def test_scales_and_mirror_images_are_averaged(segmenter):
    """The probabilities of each, at the size of the image."""
    image, size = pixels(50, 70), (50, 70)
    (found,) = segment(image, segmenter, "multi_scale")
    expected = []
    for side in (20, 30, 40, 50, 60, 70):
        inputs = resized_inputs(image, side)
        mirrored = softmax_of(segmenter, inputs[:, :, ::-1])[:, :, ::-1]
        expected.append(enlarged((softmax_of(segmenter, inputs) + mirrored) / 2, size))
    assert_same_classes(found.mask, np.mean(expected, axis=0))
    (flipped,), (whole,) = segment(image, segmenter, "flip"), segment(image, segmenter)
    assert_same_classes(flipped.mask, expected[2])
    assert (flipped.mask != whole.mask).any() and (found.mask != flipped.mask).any()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_windows_are_averaged(segmenter, batch_size):
    """As mmsegmentation does, of probabilities: sums over the windows by the number of windows at each pixel."""
    image = pixels(60, 93)
    (found,) = segment(image, segmenter, "sliding_window", batch_size, window=24, overlap=0.5)
    inputs, total, count = resized_inputs(image, 40), np.zeros((1, 40, 62, 5)), np.zeros((1, 40, 62, 1))
    for top in (0, 12, 16):
        for left in (0, 12, 24, 36, 38):
            part = np.s_[:, top : top + 24, left : left + 24]
            total[part] += softmax_of(segmenter, inputs[part])
            count[part] += 1
    assert_same_classes(found.mask, enlarged(total / count, (60, 93)))
    assert (found.mask != segment(image, segmenter)[0].mask).any()


def test_a_window_larger_than_the_image_is_the_image(segmenter):
    image = pixels(40, 50)
    (found,), (expected,) = segment(image, segmenter, "sliding_window"), segment(image, segmenter)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_large_masks_are_computed_in_bands(monkeypatch):
    maps = [
        np.random.default_rng(i).random((h, w, 7), "float32") for i, (h, w) in enumerate([(9, 11), (30, 40), (5, 3)])
    ]
    expected = sum(enlarged(it[None], (30, 40)) for it in maps)
    whole = most_probable(maps, (30, 40))
    monkeypatch.setattr("keras_resnet.segmentation.BAND_VALUES", 4 * 40 * 7)
    for mask in (whole, most_probable(maps, (30, 40))):
        assert_same_classes(mask, expected)


def test_images_of_several_sizes_in_batches_and_streams(segmenter):
    images = [pixels(*size, seed) for seed, size in enumerate([(40, 60), (60, 40), (40, 60), (80, 120), (20, 20)])]
    expected = [segment(image, segmenter)[0].mask for image in images]
    for batch_size in (1, 2, 5):
        for found in (segment(images, segmenter, batch_size=batch_size), segment(iter(images), segmenter, stream=True)):
            for one, mask in zip(found, expected, strict=True):
                assert (one.mask == mask).mean() > 0.99


def test_files_and_images_in_memory(segmenter, tmp_path):
    image = pixels(40, 60)
    (tmp_path / "a.png").write_bytes(png_bytes(image))
    (tmp_path / "b.png").write_bytes(png_bytes(image)[:200])
    (expected,) = segment(image, segmenter)
    found, damaged = segment(tmp_path, segmenter, batch_size=2)
    assert found.path == tmp_path / "a.png" and damaged.path == tmp_path / "b.png" and expected.path is None
    assert found.error is None and "Expected an image" in damaged.error and damaged.size == (0, 0)
    for given in (tmp_path / "a.png", Image.fromarray(image), [png_bytes(image)], image[None]):
        np.testing.assert_array_equal(segment(given, segmenter)[0].mask, expected.mask)
    assert len(repr([found, damaged])) < 500
    with pytest.raises(ValueError, match="An image should be a path"):
        segment([np.zeros((4, 4, 3))], segmenter)
    with pytest.raises(FileNotFoundError):
        segment(tmp_path / "none.png", segmenter)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_are_turned_upright(orientation, segmenter, tmp_path):
    turns = (None, None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE")
    turn = (*turns, "ROTATE_270")[orientation]
    exif, image = Image.Exif(), Image.fromarray(pixels(40, 60))
    exif[ORIENTATION_TAG] = orientation
    image.transpose(Image.Transpose[turn]).save(tmp_path / "turned.png", exif=exif)
    (found,), (expected,) = segment(tmp_path, segmenter), segment(image, segmenter)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_other_objects_with_the_same_methods():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8")
    for protocol in (SegmentationProtocol(), SegmentationProtocol(flip=True, window=8, overlap=0.4)):
        (found,) = segment(image, brightest_channel(), protocol, batch_size=3)
        np.testing.assert_array_equal(found.mask, image.argmax(-1))
    counts = {name: (image.argmax(-1) == index).mean() for index, name in enumerate(("red", "green", "blue"))}
    assert {name: share for _, name, share in found.classes} == counts
    shares = [share for *_, share in found.classes]
    assert shares == sorted(shares, reverse=True)
    assert is_segmenter(brightest_channel()) and not is_segmenter(cifar_network())
    assert as_segmenter(segmenter := brightest_channel()) is segmenter
    for change in ({"window": 8}, {"scales": (0.5,)}, {"size": 10}):
        with pytest.raises(ValueError, match="should be left out: brightest resizes images itself"):
            segment(image, brightest_channel(resizes_images=True), **change)


def test_infinite_probabilities_are_an_error():
    broken = brightest_channel(probabilities=lambda images: np.full((1, 4, 4, 3), np.nan, "float32"))
    with pytest.raises(FloatingPointError, match="NaN or Inf from brightest"):
        segment(np.zeros((4, 4, 3), "uint8"), broken)


def test_class_names_and_colours_of_a_segmenter(segmenter, tmp_path):
    assert class_names(segmenter) == list(NAMES) and colors(segmenter) is None
    table = ((0, 0, 0), (128, 64, 128), (0, 0, 142), (107, 142, 35), (220, 20, 60))
    model = small_segmenter()
    model.info = {"preprocessing": SegmentationPreprocessing("tf", 64).to_config(), "colors": table}
    assert preprocessing(model) == SegmentationPreprocessing("tf", 64)
    set_class_names(model, NAMES)
    model.save(tmp_path / "model.keras")
    loaded = keras_resnet.load_model(tmp_path / "model.keras")
    assert colors(loaded) == table and class_names(loaded) == list(NAMES)
    (found,) = segment(pixels(64, 64), loaded)
    assert found.colors == table and found.class_names == NAMES
    with pytest.raises(ValueError, match="`class_names` should be 5 names, one for each class"):
        set_class_names(small_segmenter(), ["sky"])
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), "uint8")
    np.testing.assert_allclose(keras_resnet.preprocess_input(images, model), images / 127.5 - 1, atol=1e-6)
    for wrong in ([[0, 0, 0]], [[0, 0]] * 5, None):
        model.info["colors"] = wrong
        assert colors(model) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model, image: keras_resnet.predict(model, "x.png"),
            "a classifier, not a segmenter.*`segment` segmenters",
        ),
        (
            lambda model, image: keras_resnet.detect(image, model),
            "`model` should be a detector.*segmenters for `segment`",
        ),
        (
            lambda model, image: keras_resnet.localize(image, model),
            "`model` should be a localizer.*`segment` segmenters",
        ),
        (lambda model, image: analysis.grad_cam(model, image[None]), "should be a classifier"),
        (lambda model, image: transfer.extract(model, image[None]), "`model` should be a classifier or localizer"),
        (lambda model, image: keras_resnet.finetune(model, "digits"), "a classifier, not a segmenter"),
        (
            lambda model, image: segment(image, cifar_network()),
            "`model` should be a segmenter.*`predict` takes classifiers",
        ),
        (lambda model, image: segment(image, small_localizer()), "`model` should be a segmenter"),
        (lambda model, image: segment(model, image), "`model` should be a segmenter"),
        (lambda model, image: segment(image, model, "center"), "`protocol` should be one of"),
        (lambda model, image: segment(image, model, top=3), "fields of a protocol"),
        (lambda model, image: segment(image, model, batch_size=0), "`batch_size` should be an integer from 1"),
        (lambda model, image: segment(image, model, size=0), "`shorter_side` should be from 1"),
    ],
)
def test_other_models_and_values_are_one_message(call, message, segmenter):
    with pytest.raises(ValueError, match=message) as error:
        call(segmenter, pixels(40, 50))
    assert "\n" not in str(error.value)


def test_an_exported_segmenter_is_no_classifier():
    with pytest.raises(ValueError, match="`model` should be a classifier. .*`segment` segmenters"):
        keras_resnet.predict(brightest_channel(), "x.png")


def test_shares_of_a_mask_with_pixels_that_do_not_count():
    found = Segmentation(None, np.array([[1, 1, 255, 0]], "uint8"), ("sky", "road"))
    assert found.classes == [(1, "road", 0.5), (0, "sky", 0.25)]
    assert keras.tree.flatten(Segmentation(None, error="no image").classes) == []


def test_a_model_of_unknown_preprocessing():
    with pytest.raises(ValueError, match="known preprocessing"):
        segment(pixels(40, 50), small_segmenter())
    model = cifar_network()
    assert isinstance(preprocessing(model), Preprocessing)
