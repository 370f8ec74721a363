"""Masks of tensorflow-datasets, in datasets with the features of its "oxford_iiit_pet"."""

import numpy as np
import pytest
from PIL import Image
from support import png_bytes

from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.data.tfds import load_tfds

tfds = pytest.importorskip("tensorflow_datasets")
CLASSES = ("sky", "road", "car")


def masks_of(count, values, seed=0):
    """{key: mask} of random values; sizes differ."""
    generator = np.random.default_rng(seed)
    return {f"{seed}{index}": generator.choice(values, (6 + index, 9)).astype("uint8") for index in range(count)}


def prepare(folder, dataset="roads", splits=None, feature="segmentation_mask", labels=None, mode="L"):
    """A prepared builder of images and their masks; `labels` are the names of a LabeledImage."""
    splits = splits or {"train": masks_of(4, range(3)), "test": masks_of(3, range(3), 1)}
    mask_feature = (
        tfds.features.LabeledImage(labels=list(labels), shape=(None, None, 1), encoding_format="png")
        if labels
        else tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    )
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        feature: mask_feature,
    }

    def examples(masks):
        for key, mask in masks.items():
            paths = [folder / "files" / f"{key}-{kind}.png" for kind in ("image", "mask")]
            paths[0].parent.mkdir(exist_ok=True)
            paths[0].write_bytes(png_bytes(np.zeros((*mask.shape, 3), "uint8")))
            Image.fromarray(mask).convert(mode).save(paths[1])
            yield key, {"image": str(paths[0]), "label": "cat", feature: str(paths[1])}

    class Masks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {split: examples(masks) for split, masks in splits.items()}

        def _generate_examples(self):
            pass

    builder = Masks(data_dir=folder / "tfds")
    builder.download_and_prepare()
    return builder


def found_masks(split):
    return sorted((split.masks.read(index) for index in range(len(split))), key=lambda mask: mask.shape)


@pytest.mark.parametrize(
    "feature, labels", [("segmentation_mask", None), ("segmentation_label", None), ("roads", CLASSES)]
)
def test_masks_are_those_that_were_written(tmp_path, feature, labels):
    builder = prepare(tmp_path, feature=feature, labels=labels)
    data = load_tfds(builder, masks=True)
    assert data.class_names == (labels or ("class 0", "class 1", "class 2"))
    for split, written in ((data.train, masks_of(4, range(3))), (data.test, masks_of(3, range(3), 1))):
        assert all(map(np.array_equal, found_masks(split), written.values()))
        expected = [[int((mask == label).any()) for label in range(3)] for mask in written.values()]
        assert sorted(split.labels.tolist()) == sorted(expected)
    name = "roads"
    tests = load_test(name, "test", data_dir=tmp_path / "tfds", masks=True, ignore_index=2)
    assert tests.class_names == data.class_names[:2]
    expected = [np.where(mask == 2, 255, mask) for mask in masks_of(3, range(3), 1).values()]
    assert all(map(np.array_equal, found_masks(tests.test), expected))
    classes = load_dataset(name, data_dir=tmp_path / "tfds")
    assert classes.class_names == ("cat", "dog") and classes.train.masks is None
    held_out = load_dataset(name, data_dir=tmp_path / "tfds", masks=True, validation_split=1)
    assert (len(held_out.train), len(held_out.test)) == (3, 1)


def test_the_classes_of_oxford_iiit_pet(tmp_path):
    """Its values are 1, 2 and 3: foreground, background, not classified."""
    splits = {"train": masks_of(4, [1, 2, 3]), "test": masks_of(2, [1, 2, 3], 1)}
    builder = prepare(tmp_path, "oxford_iiit_pet", splits)
    data = load_tfds(builder, masks=True)
    assert data.class_names == ("pet", "background", "border")
    assert all(map(np.array_equal, found_masks(data.train), (mask - 1 for mask in splits["train"].values())))
    data = load_tfds(builder, masks=True, ignore_index=3)
    assert data.class_names == ("pet", "background")
    expected = (np.where(mask == 3, 255, mask - 1) for mask in splits["test"].values())
    assert all(map(np.array_equal, found_masks(data.test), expected))


def test_invalid_masks_are_listed(tmp_path):
    bad = masks_of(3, range(3), 1) | {"x": np.full((6, 9), 7, "uint8")}
    builder = prepare(tmp_path, splits={"train": masks_of(4, range(3)), "test": bad})
    with pytest.raises(ValueError, match=r"1 invalid in roads(?s:.*)test \d.*the indices .7., but there are 3 classes"):
        load_tfds(builder, masks=True)
    with pytest.warns(UserWarning, match="Left out 1 invalid"):
        data = load_tfds(builder, masks=True, skip_bad=True)
    assert (len(data.train), len(data.test), len(data.skipped)) == (4, 3, 1)


def test_masks_in_colours_are_refused(tmp_path):
    builder = prepare(tmp_path, mode="RGB", labels=CLASSES)
    with pytest.raises(ValueError, match=r"4 invalid in roads(?s:.*)train 0 .it is colours without a palette"):
        load_tfds(builder, masks=True, validation_split=1)


def test_datasets_without_masks(tmp_path):
    builder = prepare(tmp_path, feature="picture")
    with pytest.raises(ValueError, match=r"an Image of one channel named .*, not \['image', 'label', 'picture'\]"):
        load_tfds(builder, masks=True)
    with pytest.raises(ValueError, match="`ignore_index` should be left out"):
        load_dataset("roads", data_dir=tmp_path / "tfds", ignore_index=1)
