"""Boxes of tensorflow-datasets, in datasets with the features of its "coco" and "voc"."""

import numpy as np
import pytest
from annotated_images import CLASSES, HEIGHT, SPLITS, WIDTH, save_image, write_voc

from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.data.tfds import load_tfds

tfds = pytest.importorskip("tensorflow_datasets")


def prepare(folder, dataset, flags, splits, offset=0, label=None, name="image/filename"):
    """A prepared builder with the features of a dataset of tensorflow-datasets; boxes begin at pixel `offset`.

    `label` is the feature of classes, None for a ClassLabel of CLASSES, and `name` that of an image's name.
    """
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="png"),
            name: tfds.features.Text(),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": label or tfds.features.ClassLabel(names=CLASSES),
                    **dict.fromkeys(flags, np.bool_),
                }
            ),
        }
    )

    def examples(images):
        for key, objects in images.items():
            rows = [
                {
                    "bbox": tfds.features.BBox((y1 + offset) / HEIGHT, (x1 + offset) / WIDTH, y2 / HEIGHT, x2 / WIDTH),
                    "label": class_name,
                    **dict.fromkeys(flags, class_name == "bee"),
                }
                for class_name, (x1, y1, x2, y2) in objects
            ]
            path = save_image(folder / "images" / f"{key}.png")
            yield key, {"image": str(path), name: f"{key}.png", "objects": rows}

    class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {split: examples(images) for split, images in splits.items()}

        def _generate_examples(self):
            pass

    builder = Images(data_dir=folder / "tfds")
    builder.download_and_prepare()
    return builder


def by_image(split):
    """{name of the image: [(label, box)]}."""
    found = split.objects
    rows = zip(found.image, found.labels, found.boxes, strict=True)
    pairs = [(found.image_ids[image], (CLASSES[label], tuple(box.round(3).tolist()))) for image, label, box in rows]
    return {name: sorted(pair for other, pair in pairs if other == name) for name in found.image_ids}


@pytest.mark.parametrize("name, flag, offset", [("insects", "is_crowd", 0), ("voc", "is_difficult", 1)])
def test_boxes_are_those_of_the_same_images_in_a_folder(tmp_path, name, flag, offset):
    splits = {"train": SPLITS["train"], "validation": SPLITS["val"]}
    data = load_tfds(prepare(tmp_path, name, [flag], splits, offset))
    folder = load_dataset(write_voc(tmp_path / "folder"))
    assert data.class_names == folder.class_names
    for split, expected in ((data.train, folder.train), (data.test, folder.test)):
        assert by_image(split) == by_image(expected)
        flags = split.objects.crowd if flag == "is_crowd" else split.objects.difficult
        assert flags.tolist() == [CLASSES[label] == "bee" for label in split.objects.labels]
        np.testing.assert_array_equal(split.labels, split.objects.label_matrix(3))


def test_a_prepared_dataset_is_found_by_its_name(tmp_path):
    images = {"a": [("bee", (1, 1, 1, 5)), ("ant", (0, 0, 4, 5))], "b": [("wasp", (5, 5, 20, 20))]}
    prepare(tmp_path, "insects", [], {"train": images, "test": {"c": [], "d": []}})
    with pytest.raises(ValueError, match="1 invalid in insects(?s:.*)object 1 .its box .* is empty"):
        load_test("insects", "train", data_dir=tmp_path / "tfds")
    with pytest.warns(UserWarning, match="Left out 1 invalid"):
        data = load_test("insects", "train", data_dir=tmp_path / "tfds", skip_bad=True)
    assert (len(data.test), len(data.test.objects), len(data.skipped)) == (2, 2, 1)
    with pytest.raises(ValueError, match="a labelled split test or validation"):  # as VOC 2012, its objects are secret
        load_dataset("insects", data_dir=tmp_path / "tfds", skip_bad=True)


def test_ids_that_are_text_and_objects_without_a_class(tmp_path):
    """ClassLabel allows -1 for no label."""
    images = {"a": [(-1, (1, 1, 9, 5)), ("ant", (0, 0, 4, 5))], "b": [("wasp", (5, 5, 20, 20))]}
    builder = prepare(tmp_path, "insects", [], {"train": images, "test": images}, name="image/id")
    with pytest.raises(ValueError, match=r"1 invalid in insects(?s:.*)object 1 \(class -1 of 3, from 0\)"):
        load_tfds(builder)
    with pytest.warns(UserWarning, match="Left out 1 invalid"):
        found = by_image(load_tfds(builder, skip_bad=True).train)
    assert found == {"a.png": [("ant", (0, 0, 4, 5))], "b.png": [("wasp", (5, 5, 20, 20))]}


def test_a_dataset_whose_objects_have_no_class_label_is_refused(tmp_path):
    builder = prepare(tmp_path, "insects", [], {"train": SPLITS["train"]}, label=tfds.features.Text())
    with pytest.raises(ValueError, match="`dataset` should be .*ClassLabel, not Text"):
        load_tfds(builder)
