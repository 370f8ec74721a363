"""Residual networks in Keras (He et al. 2015): models, pretrained weights, training, evaluation and export."""

from importlib import import_module
from typing import TYPE_CHECKING

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.detector import Detector
from keras_resnet.architecture.detector_spec import DetectionSettings, DetectorSpec
from keras_resnet.architecture.localizer import Localizer
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.network import ResNet, build, endpoints
from keras_resnet.architecture.segmenter import Segmenter
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.labels import decode_predictions
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.sources import from_arrays, load_dataset
from keras_resnet.detection import detect
from keras_resnet.evaluation import evaluate
from keras_resnet.localization import localize
from keras_resnet.models import constructors
from keras_resnet.models.constructors import *  # noqa: F403
from keras_resnet.models.create import create
from keras_resnet.models.detector_transforms import with_settings
from keras_resnet.models.feature_extractor import feature_extractor
from keras_resnet.models.model_files import load_model
from keras_resnet.models.preprocessing import preprocess_input, preprocessing
from keras_resnet.models.publishing import push_to_hub, save_pretrained
from keras_resnet.models.transforms import fold_batch_norm
from keras_resnet.prediction import predict
from keras_resnet.segmentation import segment
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import get_recipe
from keras_resnet.variants import get_spec
from keras_resnet.weights.catalog import list_models, list_weights
from keras_resnet.weights.loading import load_weights
from keras_resnet.weights.saving import save_weights

if TYPE_CHECKING:
    from keras_resnet.deployment.exported import load_exported
    from keras_resnet.deployment.exporting import export
    from keras_resnet.deployment.inference import optimize_for_inference
    from keras_resnet.search.hypermodel import ResNetHyperModel
    from keras_resnet.search.tune import tune
    from keras_resnet.training.learning_rate_test import learning_rate_test
    from keras_resnet.training.train import train
    from keras_resnet.transfer.finetuning import finetune

__version__ = "0.1.0"

_LAZY = {
    "train": "keras_resnet.training.train",
    "learning_rate_test": "keras_resnet.training.learning_rate_test",
    "finetune": "keras_resnet.transfer.finetuning",
    "tune": "keras_resnet.search.tune",
    "ResNetHyperModel": "keras_resnet.search.hypermodel",
    "optimize_for_inference": "keras_resnet.deployment.inference",
    "export": "keras_resnet.deployment.exporting",
    "load_exported": "keras_resnet.deployment.exported",
}
"""Name -> the module that defines it; imported on first use, because training and export need more than Keras."""

__all__ = [
    "DetectionSettings",
    "Detector",
    "DetectorSpec",
    "Localizer",
    "LocalizerSpec",
    "Preprocessing",
    "Recipe",
    "ResNet",
    "ResNetHyperModel",
    "ResNetSpec",
    "RunOptions",
    "Segmenter",
    "SegmenterSpec",
    "build",
    "complexity",
    "create",
    "decode_predictions",
    "detect",
    "endpoints",
    "evaluate",
    "export",
    "feature_extractor",
    "finetune",
    "fold_batch_norm",
    "from_arrays",
    "get_recipe",
    "get_spec",
    "learning_rate_test",
    "list_models",
    "list_weights",
    "load_dataset",
    "load_exported",
    "load_model",
    "load_weights",
    "localize",
    "optimize_for_inference",
    "predict",
    "preprocess_input",
    "preprocessing",
    "push_to_hub",
    "save_pretrained",
    "save_weights",
    "segment",
    "train",
    "tune",
    "with_settings",
]
__all__ += constructors.__all__


def __getattr__(name: str):
    if name in ("analysis", "deployment", "transfer"):
        return import_module(f"keras_resnet.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
