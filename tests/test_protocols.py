"""Test views of images, against torchvision's crops written out and PIL's own resizing."""

import numpy as np
import pytest
from PIL import Image

from keras_resnet.data.image_files import load_image
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.protocols import PROTOCOLS, Protocol, check_scales, get_protocol, image_views

IMAGENET = Preprocessing("torch", size=224, resize=256)


@pytest.fixture(scope="module")
def photographs(test_data):
    return [str(path) for path in sorted((test_data / "imagenet_sample").glob("*.JPEG"))]


def test_center_view_equals_preprocessing(photographs):
    (views,) = image_views(photographs[:4], IMAGENET, Protocol())
    expected = Preprocessing("tf", size=224, resize=256)(photographs[:4])
    np.testing.assert_allclose(views[:, 0] / 127.5 - 1, expected, atol=1e-6)


def test_ten_crops_equal_torchvision(photographs):
    """torchvision.transforms.TenCrop after Resize(256): corners, centre, and all of them mirrored."""
    for path in photographs[::10]:
        image = load_image(path)
        width, height = image.size
        scale = 256 / min(image.size)
        image = image.resize((max(256, int(width * scale)), max(256, int(height * scale))), Image.Resampling.BILINEAR)
        pixels, (width, height) = np.asarray(image), image.size
        middle = round((height - 224) / 2), round((width - 224) / 2)
        corners = [(0, 0), (0, width - 224), (height - 224, 0), (height - 224, width - 224), middle]
        crops = [pixels[top : top + 224, left : left + 224] for top, left in corners]
        (views,) = image_views([path], IMAGENET, PROTOCOLS["ten_crop"])
        np.testing.assert_array_equal(views[0], crops + [crop[:, ::-1] for crop in crops])


def test_uncropped_images_at_every_scale(photographs):
    image = load_image(photographs[0])
    scales = image_views(photographs[:1], IMAGENET, PROTOCOLS["multi_scale"])
    assert [min(views.shape[2:4]) for views in scales] == [224, 256, 384, 480, 640]
    for views, scale in zip(scales, PROTOCOLS["multi_scale"].scales, strict=True):
        width, height = (int(scale * side / min(image.size)) for side in image.size)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(views[0], [resized, resized[:, ::-1]])


def test_pixels_of_the_input_size_are_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), "uint8")
    preprocessing = Preprocessing("cifar", size=32, resize=None)
    (views,) = image_views(pixels, preprocessing, PROTOCOLS["flip"])
    np.testing.assert_array_equal(views, np.stack([pixels, pixels[:, :, ::-1]], axis=1))
    (padded,) = image_views(pixels, preprocessing, Protocol("corners", scales=(40,)))
    assert padded.shape == (3, 5, 32, 32, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_protocol("ten_crops"), "ten_crop"),
        (lambda: get_protocol("center", crop="centre"), "center"),
        (lambda: Protocol("whole"), "`scales` should be given"),
        (lambda: Protocol(scales=(0,)), "from 1 to 8192 pixels"),
        (lambda: check_scales(Protocol(scales=(160,)), IMAGENET, 32), r"at least 224 pixels.*Received: scales=\[160\]"),
        (lambda: check_scales(Protocol("whole", scales=(16, 64)), IMAGENET, 32), r"at least 32 pixels.*\[16\]"),
        (
            lambda: check_scales(PROTOCOLS["ten_crop"], Preprocessing("cifar", 32, None), 8),
            "larger than the crops of 32 pixels",
        ),
        (
            lambda: image_views([np.zeros((10, 4000, 3), "uint8")], IMAGENET, PROTOCOLS["ten_crop"]),
            "at most 8192 pixels",
        ),
    ],
)
def test_invalid_values_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
