"""What a trained network is used for: its features, and what can be done with them; `keras_resnet.finetune`."""

from keras_resnet.models.feature_extractor import feature_extractor
from keras_resnet.transfer.extraction import Features, extract
from keras_resnet.transfer.feature_files import read_features
from keras_resnet.transfer.probes import (
    Probe,
    draw_feature_map,
    feature_map,
    linear_probe,
    nearest_images,
    nearest_neighbours,
)
from keras_resnet.transfer.writing import write_features

__all__ = [
    "Features",
    "Probe",
    "draw_feature_map",
    "extract",
    "feature_extractor",
    "feature_map",
    "linear_probe",
    "nearest_neighbours",
    "nearest_images",
    "read_features",
    "write_features",
]
