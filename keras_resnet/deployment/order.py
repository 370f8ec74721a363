"""What is to be exported, as the writers of all formats get it."""

from dataclasses import dataclass, replace

import keras
import numpy as np

from keras_resnet.deployment.serving import Metadata, serving_model


@dataclass(frozen=True)
class ExportSpec:
    """A network, and how it is to be written."""

    model: keras.Model
    """Folded."""
    metadata: Metadata
    batch_size: int | None = None
    """None for any."""
    calibration: np.ndarray | None = None
    """(N, ...) inputs of the exported graph, which show what numbers occur in it; for int8."""

    @property
    def precision(self):
        return self.metadata.precision

    def in_float32(self):
        """The same, in float32."""
        return replace(self, metadata=replace(self.metadata, precision="float32"), calibration=None)

    def graph(self, precision="float32"):
        """(model, signature) as `Model.export` takes them."""
        model = serving_model(self.model, precision, self.metadata.raw)
        (given,) = model.inputs
        signature = keras.InputSpec(given.dtype, (self.batch_size, *given.shape[1:]), name=given.name)
        return model, [signature]

    @property
    def samples(self):
        """The calibration images in batches that the graph takes."""
        size = self.batch_size or 1
        whole = len(self.calibration) // size * size
        return list(self.calibration[:whole].reshape(-1, size, *self.calibration.shape[1:]))
