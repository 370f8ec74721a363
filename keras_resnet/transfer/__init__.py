"""Features of trained networks, and what can be done with them: probes, similar images, maps, fine-tuning."""

from keras_resnet.models.feature_extractor import feature_extractor
from keras_resnet.transfer.extraction import Features, extract
from keras_resnet.transfer.feature_files import read_features, write_features
from keras_resnet.transfer.probes import (
    Probe,
    feature_map,
    linear_probe,
    nearest_images,
    nearest_neighbours,
    plot_feature_map,
)

__all__ = [
    "Features",
    "Probe",
    "plot_feature_map",
    "extract",
    "feature_extractor",
    "feature_map",
    "linear_probe",
    "nearest_neighbours",
    "nearest_images",
    "read_features",
    "write_features",
]
