"""`load_exported`: an exported file in the runtime of its format, for `predict`."""

import os
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np

from keras_resnet.data.detection_preprocessing import ImageBatch
from keras_resnet.data.image_files import as_pil_image, image_list
from keras_resnet.data.labels import imagenet_classes
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.deployment.checksums import has_checksum
from keras_resnet.deployment.formats.table import FORMATS, SUFFIXES, find_format
from keras_resnet.deployment.segmenter_serving import input_preprocessing
from keras_resnet.deployment.trial import check_by_trial
from keras_resnet.errors import check_installed, check_path, error_summary
from keras_resnet.files import check_regular_file
from keras_resnet.prediction import softmax


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a path has the suffix of an exported file or is a SavedModel."""
    return Path(path).suffix in SUFFIXES or (Path(path) / "saved_model.pb").exists()


def load_exported(path: str | os.PathLike) -> Any:
    """Loads a network that `export` wrote. It runs without Keras, and may be called by several threads.

    Damage is found by the checksum that `export` wrote. Files without one come from versions before it: they are first
    run in another process, in case they end it, and loaded with a warning. The checksum is no protection from
    intent: load only files you trust. A SavedModel is a program, which may read and write files.

    >>> import numpy as np
    >>> from keras_resnet import create, export, load_exported
    >>> report = export(create("resnet20", weights="cifar10"), "resnet20", "saved_model", measure_speed=False)
    >>> exported = load_exported("resnet20")
    >>> exported.name, exported.class_names[:3]
    ('resnet20', ('airplane', 'automobile', 'bird'))
    >>> exported(np.zeros((2, 32, 32, 3), "uint8"))["probabilities"].shape
    (2, 10)

    Args:
        path: file, or folder of a SavedModel.

    Returns:
        An ExportedModel, which `predict` and `classify` take in place of a Keras model, and `localize` if it is a
        localizer; an ExportedDetector, which `detect` takes; or an ExportedSegmenter, which `segment` and `evaluate`
        take.

    Raises:
        FileNotFoundError: if `path` does not exist.
        ValueError: for a file that is damaged, was changed after its export, or was not written by `export`.
        ImportError: if the format's runtime is not installed; the message has the command that installs it.
    """
    exported = ExportedModel(path)
    return _KINDS[exported.metadata.task](exported) if exported.metadata.task in _KINDS else exported


class ExportedModel:
    """An exported network in the runtime of its format: a function of inputs, with the metadata of its file.

    >>> import numpy as np
    >>> from keras_resnet import create, export, load_exported
    >>> report = export(create("resnet20", weights="cifar10"), "resnet20", "saved_model", measure_speed=False)
    >>> exported = load_exported("resnet20")
    >>> inputs = exported.prepare(np.zeros((1, 50, 40, 3), "uint8"))
    >>> inputs.shape, exported.probabilities(inputs).shape
    ((1, 32, 32, 3), (1, 10))

    Args:
        path: as for `load_exported`, which also lists the errors.
    """

    def __init__(self, path: str | os.PathLike):
        check_path("path", path)
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"Expected an exported network. Received a missing path={str(path)!r}")
        check_regular_file(path)
        self.path, self.format = path, find_format(None, path)
        row = FORMATS[self.format]
        check_installed(row.title, row.libraries[:1], f"keras-residual[{self.format}]")
        files = row.files(path)
        try:
            verified = has_checksum(files)
            if not verified:
                check_by_trial(self.format, files)
            self.session = row.module.Session(path)
        except Exception as error:  # runtimes raise errors of any kind
            raise ValueError(
                f"Expected an intact {row.title} file ({error_summary(error)}). Received: path={str(path)!r}"
            ) from error
        self.metadata = self.session.metadata
        if not verified:
            warnings.warn(f"{path} has no checksum to show damage; a new export has one", stacklevel=3)

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def preprocessing(self) -> Preprocessing:
        """The Preprocessing of its images.

        Raises:
            ValueError: if it is not known.
        """
        if self.metadata.preprocessing is None:
            raise ValueError(
                "The exported network should contain its preprocessing; it was exported with `raw=True` from weights "
                f"of unknown preprocessing. Received: path={str(self.path)!r}"
            )
        return cast(Preprocessing, self.metadata.preprocessing)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of its classes; None for ImageNet's 1,000, as `decode_predictions` takes them."""
        names = self.metadata.class_names
        return None if names == tuple(name for _, name in imagenet_classes()) else names

    @property
    def has_boxes(self) -> bool:
        """Whether it is a localizer, which `localize` takes."""
        return self.metadata.task == "localization"

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """The probability from which on a multi-label network predicts a class, of each; else None."""
        return self.metadata.thresholds

    def prepare(self, images) -> np.ndarray:
        """Images, as a Preprocessing takes them -> inputs of the network."""
        return self.inputs(self.preprocessing.pixels(images))

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """(B, size, size, channels) uint8, resized and cropped -> inputs of the network."""
        return self.metadata.to_inputs(self.preprocessing, pixels)

    def __call__(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the network.

        Args:
            inputs: (B, H, W, C) uint8 in 0..255, or for a raw network the inputs of its Keras model. A network with a
                fixed batch size is run in batches of that size, the last one padded.

        Returns:
            {name of an output: (B, ...) array}.
        """
        return self._run_in_batches(self.session.run, inputs)

    def _run_in_batches(self, run, inputs):
        """Outputs of all inputs; the last batch is padded with copies of its last input."""
        size, outputs = self.session.batch_size or len(inputs), []
        for start in range(0, len(inputs), size):
            batch = inputs[start : start + size]
            padding = np.repeat(batch[-1:], size - len(batch), axis=0)
            try:
                results = run(np.concatenate([batch, padding]))
            except Exception as error:  # runtimes raise errors of any kind
                raise ValueError(
                    f"`inputs` should have the shape and dtype that {self.path} takes ({error_summary(error)}). "
                    f"Received: {inputs.dtype} {inputs.shape}"
                ) from error
            outputs.append({name: array[: len(batch)] for name, array in results.items()})
        return {name: np.concatenate([batch[name] for batch in outputs]) for name in outputs[0]}

    @property
    def takes_encoded_files(self) -> bool:
        """Whether `run_encoded_files` is available."""
        return self.metadata.crops_images and hasattr(self.session, "run_files")

    def run_encoded_files(self, contents: list[bytes]) -> dict[str, np.ndarray]:
        """Runs the network on the contents of image files, which it decodes and crops itself."""
        return self._run_in_batches(self.session.run_files, np.array(contents, object))

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """(B, ...) inputs -> (B, classes).

        Raises:
            ValueError: if the network is not a classifier.
        """
        outputs = self(inputs)
        if "logits" in outputs:
            return softmax(outputs["logits"])
        if "probabilities" not in outputs:
            raise ValueError(f"`model` should be a classifier. Received: {self.path} with outputs {list(outputs)}")
        return outputs["probabilities"]


class ExportedDetector:
    """An exported detector, which `detect` takes in place of a Keras model.

    Calling it with an image (1, H, W, 3) uint8 returns the padded outputs of its Keras model, with `boxes` (1, N, 4)
    in pixels of that image.
    """

    def __init__(self, exported: ExportedModel):
        self.exported, self.metadata, self.name = exported, exported.metadata, exported.name
        self.class_names = exported.metadata.class_names or ()
        """Names of the labels, the background first."""
        self.preprocessing = exported.preprocessing
        """The DetectionPreprocessing that is part of the network."""
        self.score_threshold = exported.metadata.score_threshold or 0.0
        """Smallest score that it returns."""

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self.exported(images)

    def prepare(self, image: Any) -> ImageBatch:
        """A path, a PIL image or a uint8 array (H, W, 3) as a batch of one; the network itself resizes it."""
        (image,) = image_list(image)
        pixels = np.asarray(as_pil_image(image, 3))
        size = np.array([pixels.shape[:2]], "float32")
        return ImageBatch(pixels[None], size, size)

    def detections(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """The outputs for a batch of images, of which each is one run."""
        return self(batch.images)


class ExportedSegmenter:
    """An exported segmenter, which `segment` and `evaluate` take in place of a Keras model.

    Calling it with images (B, H, W, 3) uint8 returns `mask` (B, H, W) uint8, the most probable class of each pixel, and
    `probabilities` (B, H, W, K); with the inputs of a raw one, its `logits`.
    """

    def __init__(self, exported: ExportedModel):
        self.exported, self.metadata, self.name = exported, exported.metadata, exported.name
        self.class_names = exported.metadata.class_names or ()
        """Names of the K classes."""
        self.colors = exported.metadata.colors
        """(red, green, blue) of each class, if they are known."""
        own = cast(SegmentationPreprocessing, exported.preprocessing)
        self.preprocessing = input_preprocessing(own, self.metadata.raw, self.metadata.image_size)
        """What happens to images before `probabilities`: not the preprocessing that is part of the network."""
        is_resized = own.shorter_side is not None and not self.metadata.raw
        self.resizes_images = is_resized or self.metadata.image_size is not None
        """Whether the size of the network's inputs is its own, so that a protocol can have no scales or windows."""

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self.exported(images)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """What `preprocessing` returned, (B, H, W, 3) -> probabilities of the classes (B, H, W, K) float32."""
        if self.metadata.raw:
            return softmax(self(images)["logits"])
        return self(images.astype("uint8"))["probabilities"]


_KINDS: dict[str, Any] = {"detection": ExportedDetector, "segmentation": ExportedSegmenter}
"""Task -> class of its exported networks, for tasks that have their own."""
