"""Test views of images, against torchvision's crops and mmsegmentation's windows written out and PIL's own resizing."""

import json

import numpy as np
import pytest
from PIL import Image

from keras_resnet.data.image_files import load_image
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.protocols import (
    PROTOCOLS,
    SEGMENTATION_PROTOCOLS,
    Protocol,
    SegmentationProtocol,
    check_scales,
    get_protocol,
    get_segmentation_protocol,
    image_views,
)

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


def mmsegmentation_windows(height, width, crop, stride):
    """`slide_inference` of mmseg/models/segmentors/encoder_decoder.py: (y1, y2, x1, x2) of each window."""
    h_grids = max(height - crop + stride - 1, 0) // stride + 1
    w_grids = max(width - crop + stride - 1, 0) // stride + 1
    for h_idx in range(h_grids):
        for w_idx in range(w_grids):
            y1, x1 = h_idx * stride, w_idx * stride
            y2, x2 = min(y1 + crop, height), min(x1 + crop, width)
            yield max(y2 - crop, 0), y2, max(x2 - crop, 0), x2


@pytest.mark.parametrize("size", [(512, 512), (520, 1000), (300, 700), (853, 854), (1194, 513), (1, 2000)])
@pytest.mark.parametrize("overlap", [1 / 3, 0.0, 0.5])
def test_windows_are_those_of_mmsegmentation(size, overlap):
    protocol = get_segmentation_protocol("sliding_window", overlap=overlap)
    assert protocol.stride == {1 / 3: 341, 0.0: 512, 0.5: 256}[overlap]
    found = [(top, top + height, left, left + width) for top, left, height, width in protocol.windows(*size)]
    assert found == list(mmsegmentation_windows(*size, 512, protocol.stride))


@pytest.mark.parametrize("window", [1, 7, 64])
def test_windows_contain_every_pixel_and_have_one_size(window):
    windows = SegmentationProtocol(window=window, overlap=0.25).windows(40, 23)
    covered = np.zeros((40, 23), int)
    for top, left, height, width in windows:
        covered[top : top + height, left : left + width] += 1
    assert covered.min() >= 1 and len({window[2:] for window in windows}) == 1


@pytest.mark.parametrize("name", SEGMENTATION_PROTOCOLS)
def test_segmentation_protocols_as_json(name):
    config = json.loads(json.dumps(SEGMENTATION_PROTOCOLS[name].to_config()))
    assert SegmentationProtocol(**config) == SEGMENTATION_PROTOCOLS[name]
    assert get_segmentation_protocol(SEGMENTATION_PROTOCOLS[name]) == SEGMENTATION_PROTOCOLS[name]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_segmentation_protocol("centre"), "`protocol` should be one of .*'sliding_window'"),
        (lambda: get_segmentation_protocol(Protocol()), "`protocol` should be one of .*'sliding_window'"),
        (lambda: get_segmentation_protocol("whole", crop="center"), "fields of a protocol.*'window'"),
        (lambda: SegmentationProtocol(scales=(0,)), "factors above 0 and up to 16"),
        (lambda: SegmentationProtocol(scales=(512, 640)), "factors above 0 and up to 16"),
        (lambda: SegmentationProtocol(scales=("1",)), "factors above 0 and up to 16"),
        (lambda: SegmentationProtocol(scales=(float("nan"),)), "factors above 0 and up to 16"),
        (lambda: SegmentationProtocol(window=0), "`window` should be an integer from 1 to 8,192"),
        (lambda: SegmentationProtocol(window=32.5), "`window` should be"),
        (lambda: SegmentationProtocol(overlap=1), "`overlap` should be from 0 to 0.9"),
        (lambda: SegmentationProtocol(flip="yes"), "`flip` should be"),
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
