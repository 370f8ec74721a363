"""The `keras-resnet` command: one command for each task."""

from keras_resnet.cli import deployment, evaluation, features, models, studies, training
from keras_resnet.cli.app import app, main

__all__ = ["app", "deployment", "evaluation", "features", "main", "models", "studies", "training"]
