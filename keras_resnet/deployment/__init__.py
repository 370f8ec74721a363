"""A trained network at work elsewhere: folded, exported, and shown to give the same answers."""

from keras_resnet.deployment.exported import Exported, load_exported
from keras_resnet.deployment.exporting import Disagreement, export
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.inference import optimize_for_inference
from keras_resnet.models.transforms import fold_batch_norm

__all__ = [
    "FORMATS",
    "Disagreement",
    "Exported",
    "export",
    "fold_batch_norm",
    "load_exported",
    "optimize_for_inference",
]
