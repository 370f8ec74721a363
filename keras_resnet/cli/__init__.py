"""keras-resnet: one command, one call each."""

from keras_resnet.cli import networks, search, studies, testing, training, transfer
from keras_resnet.cli.app import app, main

__all__ = ["app", "main", "networks", "search", "studies", "testing", "training", "transfer"]
