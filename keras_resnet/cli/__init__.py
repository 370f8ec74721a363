"""keras-resnet: one command, one call each."""

from keras_resnet.cli import deployment, networks, search, studies, testing, training, transfer
from keras_resnet.cli.app import app, main

__all__ = ["app", "deployment", "main", "networks", "search", "studies", "testing", "training", "transfer"]
