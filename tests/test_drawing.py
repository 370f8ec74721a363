"""Drawings of detections and segmentations, and `keras-resnet predict` with a detector and a segmenter."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from support import cifar_network, png_bytes, random_pixels, run_command, small_segmenter

import keras_resnet
from keras_resnet import save_pretrained
from keras_resnet.data.image_files import SUFFIXES, load_image
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.detection import Detection
from keras_resnet.drawing import (
    default_colors,
    draw_detections,
    draw_legend,
    draw_segmentation,
    drawing_paths,
    mask_image,
    write_drawing,
    write_mask,
)
from keras_resnet.segmentation import Segmentation

VOC_COLORS = (
    *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)),
    *((128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128)),
    *((64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128)),
)
"""The colours of PASCAL VOC's 21 classes, as in its development kit."""
COLORS = (255 * np.array(colormaps["tab10"].colors)).round().astype(int)


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory):
    """A .keras file with a small detector with random weights, which finds three objects in any image."""
    path = tmp_path_factory.mktemp("detector") / "my.keras"
    keras.utils.set_random_seed(0)
    changes = {"neck_width": 8, "min_size": 64, "max_size": 96, "detections": 3, "score_threshold": 0.0}
    model = keras_resnet.create("maskrcnn_resnet18_fpn", classes=3, **changes)
    model.info["class_names"] = ["__background__", "[cell]", "nucleus"]
    model.save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder with two images whose names are numbers, one of them in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, image in zip(("0012.png", "more/7.jpg"), random_pixels(2), strict=True):
        Image.fromarray(image).resize((120, 80)).save(folder / name)
    return folder


def two_objects(size=(100, 120)):
    """A Detection with masks that fill the boxes."""
    boxes = np.array([[10, 40, 50, 90], [60, 30, 110, 80]], "float32")
    scores, masks = np.array([0.9, 0.75], "float32"), np.ones((2, 28, 28), "float32")
    return Detection(None, size, boxes, scores, np.array([1, 2]), ("cat", "dog"), masks)


def test_pixels_of_boxes_and_masks_have_the_objects_colour():
    image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), "uint8")
    drawn = np.asarray(draw_detections(image, two_objects())).astype(int)
    for (left, top, right, bottom), color in zip(two_objects().boxes.astype(int), COLORS, strict=False):
        assert (drawn[top : bottom + 1, right] == color).all() and (drawn[bottom, left : right + 1] == color).all()
        inside = np.s_[top + 20 : bottom - 1, left + 2 : right - 1]
        assert np.abs(drawn[inside] - (0.55 * image[inside] + 0.45 * color)).max() <= 1
    np.testing.assert_array_equal(drawn[95:], image[95:])
    assert (drawn[:15] == image[:15]).all() and (drawn[28:39, 12:30] != image[28:39, 12:30]).any()


def test_labels_stay_inside_the_image():
    """Of a box in the upper right corner, they are below its upper edge, and moved to the left."""
    found = Detection(None, (100, 120), np.array([[110, 0, 119, 9]], "float32"), np.ones(1), np.ones(1), ("object",))
    drawn = np.asarray(draw_detections(np.zeros((100, 120, 3), "uint8"), found))
    rows, columns = np.nonzero((drawn == COLORS[0]).all(-1))
    assert rows.max() < 20 and columns.min() < 80


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`image` should be of the width and height .*\(120, 100\)"):
        draw_detections(np.zeros((50, 60, 3), "uint8"), two_objects())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_drawings_have_the_format_of_the_image(suffix, tmp_path):
    image = Image.fromarray(np.full((100, 120, 3), 128, "uint8"))
    image.save(tmp_path / f"a{suffix}")
    found = two_objects()
    write_drawing(Detection(**vars(found) | {"path": tmp_path / f"a{suffix}"}), tmp_path / "new" / f"b{suffix}")
    drawn = np.asarray(load_image(tmp_path / "new" / f"b{suffix}")).astype(int)
    assert np.abs(drawn - np.asarray(draw_detections(image, found))).mean() < 5
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"b{suffix}"]


def test_drawings_have_the_names_and_subfolders_of_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.png", "a/b/x.png", "c/y.scan"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(*inputs):
        images = [image for path in inputs for image in keras_resnet.data.image_files.find_images(path)]
        return [str(path) for path in drawing_paths(inputs, images, tmp_path / "out").values()]

    out = str(tmp_path / "out")
    assert names("a") == [f"{out}/x.png", f"{out}/b/x.png"] or names("a") == [f"{out}/b/x.png", f"{out}/x.png"]
    assert sorted(names("a", "c/y.scan")) == [f"{out}/a/b/x.png", f"{out}/a/x.png", f"{out}/c/y.scan.png"]
    assert names("a/b/x.png") == [f"{out}/x.png"]
    assert set(names("c/y.scan", "./c/y.scan", tmp_path / "c/y.scan")) == {f"{out}/y.scan.png"}


@pytest.mark.parametrize("folder", ["photos", "photos/more", ".", "link"])
def test_inputs_are_never_overwritten(folder, photos, detector_file, monkeypatch):
    """Also if the folder, or a file in it, is a link."""
    monkeypatch.chdir(photos.parent)
    (photos.parent / "link").symlink_to(photos)
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    done = run_command("predict", "photos", "--model", detector_file, "--draw", folder)
    assert done.exit_code == 1 and "`draw` should be a folder without images to predict" in done.stderr
    (photos.parent / "out").mkdir()
    (photos.parent / "out" / "0012.png").symlink_to(photos / "0012.png")
    done = run_command("predict", "photos", "--model", detector_file, "--draw", "out")
    assert done.exit_code == 1 and "in which no other image becomes" in done.stderr
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before


def test_predict_lists_and_draws_the_objects_of_each_image(detector_file, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (photos / "8.png").write_bytes(png_bytes(random_pixels(1)[0])[:99])
    options = ("--model", detector_file, "--score-threshold", "0")
    done = run_command("predict", "photos", *options, "--draw", "out")
    assert done.exit_code == 1 and "not read: photos/8.png" in done.stderr
    found = keras_resnet.detect(photos, keras_resnet.load_model(detector_file), 0)
    shown = re.findall(r"(\[cell\]|nucleus) +([\d.]+)% +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)", done.stdout)
    assert [row[0] for row in shown] == [name for detection in found for name in detection.names]
    expected = [row for one in found for row in np.column_stack([100 * one.scores, one.boxes])]
    np.testing.assert_allclose([[float(value) for value in row[1:]] for row in shown], expected, atol=0.11)
    assert sorted(path.name for path in (photos.parent / "out").rglob("*.*")) == ["0012.png", "7.jpg"]
    drawn = draw_detections(photos / "0012.png", next(one for one in found if one.path.name == "0012.png"))
    np.testing.assert_array_equal(load_image("out/0012.png"), drawn)


def test_the_json_is_cocos_results_format(detector_file, photos, tmp_path):
    """With the numbers of COCO's file names; of other names, the paths."""
    coco = pytest.importorskip("pycocotools.coco")
    pytest.importorskip("faster_coco_eval")
    options = ("--model", detector_file, "--score-threshold", "0", "--json")
    done = run_command("predict", photos, *options)
    assert done.exit_code == 0, done.output
    (tmp_path / "results.json").write_text(done.stdout)
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": 7}, {"id": 12}], "categories": [], "annotations": []}
    truth.createIndex()
    rows = truth.loadRes(str(tmp_path / "results.json")).dataset["annotations"]
    assert [row["image_id"] for row in rows] == [12] * 3 + [7] * 3
    assert all(coco.maskUtils.decode(row["segmentation"]).shape == (80, 120) for row in rows)
    (photos / "0012.png").rename(photos / "cat.png")
    rows = json.loads(run_command("predict", photos, *options).stdout)
    assert {row["image_id"] for row in rows} == {str(photos / "cat.png"), str(photos / "more" / "7.jpg")}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--top", "3"), "`--top` should be left out for a detector"),
        (("--protocol", "flip"), "`--protocol` should be left out for a detector"),
        (("--score-threshold", "2"), "`score_threshold` should be a number from 0 to 1"),
        (("--min-size", "0"), "`min_size` should be from 1"),
    ],
)
def test_options_that_do_not_fit_a_detector(option, message, detector_file, photos):
    done = run_command("predict", photos, "--model", detector_file, *option)
    assert done.exit_code == 1 and message in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--score-threshold", "0.3"), "`--score-threshold` should be left out for a classifier"),
        (("--draw", "out"), "`--draw` should be left out for a classifier"),
    ],
)
def test_options_that_do_not_fit_a_classifier(option, message, photos, tmp_path):
    cifar_network().save(tmp_path / "classifier.keras")
    done = run_command("predict", photos, "--model", tmp_path / "classifier.keras", *option)
    assert done.exit_code == 1 and message in done.stderr and not (tmp_path / "out").exists()


def test_a_detector_without_published_weights_needs_a_file(photos):
    done = run_command("predict", photos, "--model", "fasterrcnn_resnet18_fpn")
    assert done.exit_code == 1 and "`--weights` should be a weights file, as" in done.stderr


def test_a_saved_folder_has_its_own_weights(photos, tmp_path):
    save_pretrained(cifar_network(), tmp_path / "saved")
    done = run_command("predict", photos, "--model", tmp_path / "saved")
    assert done.exit_code == 0, done.stderr


def four_classes(colors=None, names=("background", "sky", "road", "car")):
    """A Segmentation of four stripes, of which the second one does not count, and the third is the background."""
    mask = np.repeat(np.array([[1, 255, 0, 2]], "uint8"), 30, axis=1).repeat(60, axis=0)
    return Segmentation(None, mask, names, colors)


@pytest.mark.parametrize("colors", [None, ((9, 9, 9), (200, 30, 40), (10, 220, 130), (0, 0, 0))])
def test_pixels_of_classes_have_their_colour(colors):
    """But for those that do not count, or are of the background; below them is the legend."""
    image = np.random.default_rng(0).integers(0, 256, (60, 120, 3), "uint8")
    found = four_classes(colors)
    drawn = np.asarray(draw_segmentation(image, found)).astype(int)
    for columns, color in ((np.s_[:30], (colors or VOC_COLORS)[1]), (np.s_[90:], (colors or VOC_COLORS)[2])):
        expected = 0.4 * image[:, columns] + 0.6 * np.array(color)
        assert np.abs(drawn[:60, columns] - expected).max() <= 1
    np.testing.assert_array_equal(drawn[:60, 30:90], image[:, 30:90])
    np.testing.assert_array_equal(draw_segmentation(image, found, legend=False), drawn[:60])
    legend = np.asarray(draw_legend([found], 120)).astype(int)
    np.testing.assert_array_equal(drawn[60:], legend)
    occur = [(legend == np.array(color)).all(-1).any() for color in (colors or VOC_COLORS)[1:4]]
    assert occur == [True, True, bool(colors)]  # black is also the colour of the text
    with pytest.raises(ValueError, match=r"`image` should be of the width and height .*\(120, 60\)"):
        draw_segmentation(image[:50], found)


def test_a_legend_has_as_many_lines_as_it_needs():
    narrow, wide = (draw_legend([four_classes()], width) for width in (90, 400))
    assert (narrow.width, wide.width) == (90, 400) and narrow.height > wide.height
    both = draw_legend(
        [four_classes(), Segmentation(None, np.full((2, 2), 3, "uint8"), four_classes().class_names)], 400
    )
    assert (np.asarray(both) == VOC_COLORS[3]).all(-1).any() and not (np.asarray(wide) == VOC_COLORS[3]).all(-1).any()
    assert draw_legend([Segmentation(None, np.full((2, 2), 255, "uint8"), ("sky",))], 50).size == (50, 1)


def test_default_colours_are_those_of_pascal_voc():
    assert default_colors(21) == VOC_COLORS and default_colors(0) == ()
    assert default_colors(256)[255] == (224, 224, 192) and len(set(default_colors(256))) == 256


def test_masks_are_written_with_their_palette(tmp_path):
    found = four_classes(((9, 8, 7), (200, 30, 40), (10, 220, 130), (1, 2, 3)))
    write_mask(found, tmp_path / "new" / "mask.png")
    with Image.open(tmp_path / "new" / "mask.png") as image:
        assert image.mode == "P" and image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), found.mask)
        shown = np.asarray(image.convert("RGB"))
    assert [tuple(shown[0, column].tolist()) for column in (0, 30, 60, 90)] == [
        *((200, 30, 40), (224, 224, 192), (9, 8, 7), (10, 220, 130))
    ]
    names = tuple(f"class {index}" for index in range(255))
    many = Segmentation(None, np.arange(256, dtype="uint8").reshape(16, 16), names)
    np.testing.assert_array_equal(np.asarray(mask_image(many).convert("RGB")).reshape(256, 3), default_colors(256))


@pytest.fixture(scope="module")
def segmenter_file(tmp_path_factory):
    """A .keras file with a small segmenter with random weights."""
    path = tmp_path_factory.mktemp("segmenter") / "my.keras"
    model = small_segmenter()
    names = ["background", "[sky]", "road", "car", "tree"]
    model.info = {"preprocessing": SegmentationPreprocessing().to_config(), "class_names": names}
    model.save(path)
    return path


def test_predict_lists_and_draws_the_classes_of_pixels(segmenter_file, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (photos / "8.png").write_bytes(png_bytes(random_pixels(1)[0])[:99])
    done = run_command("predict", "photos", "--model", segmenter_file, "--draw", "out", "--masks", "masks")
    assert done.exit_code == 1 and "not read: photos/8.png" in done.stderr
    found = [one for one in keras_resnet.segment(photos, keras_resnet.load_model(segmenter_file)) if not one.error]
    shown = re.findall(r"(\S+) +([\d.]+)% *$", done.stdout, re.MULTILINE)
    assert shown == [(name, f"{share * 100:.1f}") for one in found for _, name, share in one.classes]
    for one in found:
        path = one.path.relative_to(photos)
        with Image.open(photos.parent / "masks" / path.with_suffix(".png")) as mask:
            np.testing.assert_array_equal(mask, one.mask)
    drawn = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.*"))
    assert drawn == ["0012.png", "more/7.jpg"]
    np.testing.assert_array_equal(load_image("out/0012.png"), draw_segmentation(photos / "0012.png", found[0]))


def test_classes_of_pixels_as_json(segmenter_file, photos):
    """Under a protocol, with inputs of another size."""
    options = ("--protocol", "flip", "--size", "24", "--json")
    rows = json.loads(run_command("predict", photos, "--model", segmenter_file, *options).stdout)
    expected = keras_resnet.segment(photos, keras_resnet.load_model(segmenter_file), "flip", size=24)
    for row, one in zip(rows, expected, strict=True):
        assert (row["path"], row["height"], row["width"], row["error"]) == (str(one.path), 80, 120, None)
        assert [(it["index"], it["name"], it["share"]) for it in row["classes"]] == one.classes
        np.testing.assert_allclose(sum(it["share"] for it in row["classes"]), 1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--top", "3"), "`--top` should be left out for a segmenter"),
        (("--score-threshold", "0.3"), "`--score-threshold` should be left out for a segmenter"),
        (("--protocol", "ten_crop"), "`protocol` should be one of"),
        (("--localize",), "`model` should be a localizer"),
        (("--localize", "--masks", "out"), "`--masks` should be left out"),
        (("--masks", "{photos}"), "`masks` should be a folder without images to predict"),
    ],
)
def test_options_that_do_not_fit_a_segmenter(option, message, segmenter_file, photos):
    option = [word.format(photos=photos) for word in option]
    done = run_command("predict", photos, "--model", segmenter_file, *option)
    assert done.exit_code == 1 and message in done.stderr and done.stdout == ""


def test_masks_of_images_with_one_name(segmenter_file, photos, tmp_path):
    (photos / "more" / "7.png").write_bytes((photos / "0012.png").read_bytes())
    done = run_command("predict", photos, "--model", segmenter_file, "--masks", tmp_path / "out")
    assert done.exit_code == 1 and "`masks` should be a folder in which no other image becomes" in done.stderr
    assert not (tmp_path / "out").exists()


def test_masks_are_for_segmenters(detector_file, photos, tmp_path):
    done = run_command("predict", photos, "--model", detector_file, "--masks", tmp_path / "out")
    assert done.exit_code == 1 and "`--masks` should be left out for networks that are no segmenters" in done.stderr
    assert not (tmp_path / "out").exists()
