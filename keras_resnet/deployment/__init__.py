"""Deployment: networks folded, optimized for inference, and exported to other runtimes with verified outputs."""

from keras_resnet.deployment.exported import ExportedModel, load_exported
from keras_resnet.deployment.exporting import VerificationError, export
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.inference import optimize_for_inference
from keras_resnet.models.transforms import fold_batch_norm

__all__ = [
    "FORMATS",
    "ExportedModel",
    "VerificationError",
    "export",
    "fold_batch_norm",
    "load_exported",
    "optimize_for_inference",
]
