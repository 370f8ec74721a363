"""Training batches of segmenters: images with the class of every pixel, from any step of a run.

The images of a batch are a function of (seed, epoch), and what happens to each of them of (seed, its position in the
run): a run can be resumed at any step, and nothing depends on the number of machines that share a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.image_files import as_pil_image
from keras_resnet.data.pipelines import StepRange, generated_batches
from keras_resnet.data.prefetch import images_at, map_in_threads
from keras_resnet.data.segmentation_augmentation import sample_segmentation_augmentation
from keras_resnet.data.segmentation_crops import crop_size
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.data.semantic_masks import SemanticMasks
from keras_resnet.data.threaded_batches import shuffled_indices
from keras_resnet.errors import value_error


def segmentation_batches(
    dataset: Dataset,
    recipe: Any,
    preprocessing: SegmentationPreprocessing,
    steps: StepRange,
    losses: Sequence[str] = (),
) -> Any:
    """Shuffled and augmented batches of images with masks for some steps of a run.

    Args:
        dataset: a Dataset whose training images have masks.
        recipe: Recipe, with a crop for segmenters.
        preprocessing: SegmentationPreprocessing, as in testing.
        steps: StepRange of the batches.
        losses: names of the losses that the model outputs.

    Returns:
        Pairs of {"images": (B, H, W, 3) float32, normalised, "masks": (B, H, W) uint8} and {loss: (B,) zeros}, as of
        `generated_batches`. All batches have one size, see `crop_size`. Masks have IGNORED where pixels do not count.

    Raises:
        ValueError: while batches are read, for an image or a mask that cannot be read, with its name.
    """
    split: Any = dataset.train
    size = crop_size(split.masks.sizes, recipe.train_size, preprocessing)
    batches = _Batches(split, split.masks, recipe, preprocessing, size, steps, tuple(losses))
    inputs = {"images": ((*size, 3), "float32"), "masks": (size, "uint8")}
    return generated_batches(batches.iterate, inputs, losses, steps)


@dataclass(frozen=True, eq=False)
class _Batches:
    """The batches of a run, or a part of each."""

    split: Split
    masks: SemanticMasks
    recipe: Any
    preprocessing: SegmentationPreprocessing
    size: tuple[int, int]
    steps: StepRange
    losses: tuple[str, ...]

    def iterate(self) -> Iterator[tuple[dict, dict]]:
        """Yields the batches; threads read one of them ahead."""
        rows = self.steps.part.stop - self.steps.part.start
        examples = map_in_threads(self._read, self._positions(), ahead=rows)
        for _ in self.steps.numbers:
            images, masks = zip(*islice(examples, rows), strict=True)
            inputs = {"images": np.stack(images), "masks": np.stack(masks)}
            yield inputs, {name: np.zeros(rows, "float32") for name in self.losses}

    def _positions(self):
        """Yields (position in the run, index of the image) of this machine's part of each batch."""
        for step, indices in shuffled_indices(self.split, self.steps):
            first = step * self.steps.batch_size + self.steps.part.start
            yield from enumerate(map(int, indices), first)

    def _read(self, example) -> tuple[np.ndarray, np.ndarray]:
        position, index = example
        (source,) = images_at(self.split, [index])
        try:
            image = as_pil_image(source, 3)
        except (ValueError, OSError) as error:
            name = source if isinstance(source, str) else f"image {index}"
            raise ValueError(f"Image {name!r} of the training data cannot be read. {error}") from error
        mask = self.masks.read(index)
        if mask.shape != (image.height, image.width):
            expected = f"{mask.shape[1]} x {mask.shape[0]} pixels, as its mask"
            raise value_error("image", f"{image.width} x {image.height} pixels of image {index}", expected)
        random = np.random.default_rng((self.steps.seed, position, 3))
        size = image.height, image.width
        augment = sample_segmentation_augmentation(size, self.size, self.recipe, self.preprocessing, random)
        return augment(image, mask, self.preprocessing.mode)
