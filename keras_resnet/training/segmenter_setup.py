"""The segmenter of a run, built for its images, the model that trains it, and its tests after each epoch."""

from dataclasses import replace
from functools import cached_property

import keras

from keras_resnet.architecture.metadata import model_info
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.data.class_balance import pixel_weights
from keras_resnet.data.datasets import Split, evenly_spaced
from keras_resnet.data.image_files import as_pil_image
from keras_resnet.data.prefetch import images_at
from keras_resnet.data.protocols import SegmentationProtocol
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.drawing import draw_legend, draw_segmentation, draw_sheet, stack
from keras_resnet.errors import value_error
from keras_resnet.files import atomic_write
from keras_resnet.models.model_files import load_model
from keras_resnet.models.preprocessing import known_preprocessing
from keras_resnet.models.segmenter_transforms import with_new_logits
from keras_resnet.models.segmenters import create_segmenter, segmenter_with_backbone
from keras_resnet.precision import precision_of, precision_scope
from keras_resnet.segmentation import KerasSegmenter, Segmentation, segment
from keras_resnet.segmentation_evaluation import evaluate_segmenter
from keras_resnet.training.distribution import synchronize_batch_norm
from keras_resnet.training.model_setup import called, compile_losses, freeze_stages, is_model_file, raise_if_given
from keras_resnet.training.recipe import LOSSES
from keras_resnet.training.recipes import check_recipe
from keras_resnet.training.validation import SHEET_IMAGES, CallbackValidation
from keras_resnet.training.workdir import SEGMENTATIONS


def check_masks(dataset, recipe):
    """Raises ValueError for a data set on which segmenters cannot be trained and tested."""
    for split in (dataset.train, dataset.test):
        if not isinstance(split, Split) or split.masks is None:
            expected = "one with masks of its training and its test images, such as folders of images and of masks"
            raise value_error("dataset", dataset.name, expected)
    pixel_weights(dataset, recipe.class_weight)  # raises for classes that the data set does not have


def segmenter_for_images(start, dataset, recipe):
    """A segmenter of the data set's classes, which knows the size of its images, and the Dataset.

    Args:
        start: Start. A segmenter in a file gets new last layers if its classes are others; a Keras model is changed
            only in which of its layers are trainable.
        dataset: a Dataset with masks.
        recipe: a Recipe for segmenters.

    Raises:
        ValueError: for an unknown name, weights of another network, or a model that does not fit the data set.
    """
    model, names = called(start.model), list(dataset.class_names)
    check_recipe(recipe, model)
    if isinstance(model, keras.Model):
        _check_given(model, start, names)
    elif is_model_file(model) or start.weights is not None:
        model = _with_classes(_load(replace(start, model=model), recipe), names)
    else:
        with precision_scope(start.precision):
            model = _new_segmenter(model, start, len(names))
    prepared = (known_preprocessing(model) or SegmentationPreprocessing()).for_size(recipe.test_size)
    model.info = model_info(model) | facts_about_classes(dataset) | {"preprocessing": prepared.to_config()}
    freeze_stages(model, recipe.trainable_stages)
    return synchronize_batch_norm(model) if start.sync_batch_norm else model, dataset


def facts_about_classes(dataset):
    """Names and colours of the classes, for a model's `info`."""
    colors = None if dataset.colors is None else [list(color) for color in dataset.colors]
    return {"class_names": list(dataset.class_names), "colors": colors}


def _new_segmenter(model, start, classes):
    """A segmenter by its name or SegmenterSpec, whose heads are random."""
    if isinstance(model, SegmenterSpec):
        return segmenter_with_backbone(replace(model, classes=classes), start.backbone_weights)
    return create_segmenter(model, classes=classes, backbone_weights=start.backbone_weights)


def _load(start, recipe):
    """The segmenter in a .keras file, or one by its name with weights, as it was before layers were frozen by a run."""
    if is_model_file(start.model):
        raise_if_given(start, "a .keras file, which has its own", "weights", "backbone_weights", "precision")
        model = load_model(start.model)
        check_recipe(recipe, model)
        model.trainable = True  # an earlier run may have frozen layers
        return model
    if isinstance(start.model, SegmenterSpec):
        raise value_error("weights", start.weights, "left out, unless the model is the name of a network")
    with precision_scope(start.precision):
        return create_segmenter(start.model, weights=start.weights, backbone_weights=start.backbone_weights)


def _with_classes(model, names):
    """The segmenter, with new last layers unless it has these classes already."""
    known = model_info(model).get("class_names") or names
    if model.spec.classes == len(names) and [*known] == names:
        return model
    return with_new_logits(model, len(names))


def _check_given(model, start, names):
    """Raises ValueError for a Keras model of other classes, and for arguments that only other models take."""
    raise_if_given(start, "a Keras model, which has its own", "weights", "backbone_weights")
    if start.precision not in (None, precision_of(model.dtype_policy)):
        raise_if_given(start, "a Keras model, which has its own", "precision")
    if model.spec.classes != len(names):
        expected = f"a segmenter of {len(names)} classes"
        raise value_error("model", f"{model.name} of {model.spec.classes}", expected, f"They are {names}.")


def compile_segmenter(data, jit_compile):
    """The compiled model that `fit` trains: the segmenter's layers, from images and masks to losses of each image."""
    weights = pixel_weights(data.dataset, data.recipe.class_weight)
    return compile_losses(LOSSES[data.recipe.loss].function(data.network, weights), data, jit_compile)


class SegmentationValidation(CallbackValidation):
    """Tests by `evaluate_segmenter`, each image as a whole."""

    @cached_property
    def segmenter(self):
        """The tested segmenter."""
        return KerasSegmenter(self.tested)

    def metrics(self):
        """{name: value} for the test images."""
        self.update(self.tested)
        batch_size = self.data.recipe.batch_size // self.data.devices.num_replicas
        result = evaluate_segmenter(self.segmenter, self.data.dataset, SegmentationProtocol(), batch_size)
        return {name: getattr(result, name) for name in self.data.objective.results}


def write_segmentation_sheet(data, validation, folder):
    """Writes an image in which some test images stand beside their true and their predicted masks, and a legend."""
    split, rows, drawn = data.dataset.test, [], []
    indices = evenly_spaced(len(split), SHEET_IMAGES)
    images = [as_pil_image(image, 3) for image in images_at(split, indices)]
    for index, image, found in zip(indices, images, segment(images, validation.segmenter), strict=True):
        true = Segmentation(found.path, split.masks.read(index), found.class_names, found.colors)
        rows.append((image, *(draw_segmentation(image, it, legend=False) for it in (true, found))))
        drawn += [true, found]
    sheet = draw_sheet(rows)
    with atomic_write(folder / SEGMENTATIONS) as temporary:
        stack(sheet, draw_legend(drawn, sheet.width)).save(temporary, "JPEG", quality=90)
