"""The `keras-resnet` command: one command for each task."""

from keras_resnet.cli import evaluation, features, models, prediction, training
from keras_resnet.cli.app import app, main

__all__ = ["app", "evaluation", "features", "main", "models", "prediction", "training"]
