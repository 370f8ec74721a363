"""keras-resnet: one command, one call each."""

from keras_resnet.cli import networks, studies, testing, training
from keras_resnet.cli.app import app, main

__all__ = ["app", "main", "networks", "studies", "testing", "training"]
