"""A trained network at work elsewhere: folded, exported, and shown to give the same answers."""

from keras_resnet.deployment.exported import Exported, load_exported
from keras_resnet.deployment.exporting import Disagreement, export
from keras_resnet.deployment.folding import fold_batch_norm
from keras_resnet.deployment.formats import FORMATS
from keras_resnet.deployment.inference import optimize_for_inference

__all__ = [
    "FORMATS",
    "Disagreement",
    "Exported",
    "export",
    "fold_batch_norm",
    "load_exported",
    "optimize_for_inference",
]
