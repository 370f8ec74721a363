"""What is measured beside Keras: torchvision's networks, and ours as they are exported."""

from functools import cached_property

import keras
import numpy as np

from keras_resnet.benchmark.networks import Network, ours
from keras_resnet.deployment.exported import load_exported
from keras_resnet.deployment.formats.openvino_format import HINTS
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.order import ExportSpec
from keras_resnet.deployment.serving import metadata
from keras_resnet.machine import accelerator
from keras_resnet.variants import canonical_name

TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)


def torchvision_name(model):
    """torchvision's name for the network nearest to one of ours, or None: its ResNet-50 is v1.5, the paper's v1."""
    name = canonical_name(model).removesuffix("_v1_5")
    return name if name in TORCHVISION else None


class TorchNetwork(Network):
    """torchvision's network, channels last, bfloat16 by autocast."""

    compiled = False

    def __init__(self, job, folder):
        super().__init__(job, folder)
        import torch

        torch.manual_seed(0)
        self.torch, self.device = torch, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self.create().to(self.device, memory_format=torch.channels_last)
        self.step = torch.compile(self.model) if self.compiled else self.model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images = torch.randn(job.batch_size, 3, job.image_size, job.image_size)
        self.images = images.to(self.device, memory_format=torch.channels_last)
        self.labels = torch.from_numpy(job.labels).to(self.device)

    @property
    def name(self):
        return f"torchvision {torchvision_name(self.job.model)}{', compiled' if self.compiled else ''}"

    def create(self):
        import torchvision

        return torchvision.models.get_model(torchvision_name(self.job.model), weights=None)

    def inference(self, steps):
        self.model.eval()
        with self.torch.inference_mode(), self._precision():
            for _ in range(steps):
                outputs = self.step(self.images)
        outputs[0, 0].item()  # waits for the device

    def train(self, steps):
        self.model.train()
        for _ in range(steps):
            with self._precision():
                loss = self.torch.nn.functional.cross_entropy(self.step(self.images), self.labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        loss.item()  # waits for the device

    def build(self, steps):
        for _ in range(steps):
            self.create()

    def load(self, steps):
        for _ in range(steps):
            self.create().load_state_dict(self.torch.load(self.weights_file, weights_only=True))

    @cached_property
    def weights_file(self):
        path = self.folder / "network.pth"
        self.torch.save(self.model.state_dict(), path)
        return path

    def accelerator(self):
        return accelerator("torch")

    def _precision(self):
        mixed = self.job.precision == "mixed_bfloat16"
        return self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=mixed)


class CompiledTorchNetwork(TorchNetwork):
    """The same through torch.compile."""

    compiled = True


class OpenVinoTorchNetwork(Network):
    """torchvision's network, written as ONNX by torch, in OpenVINO."""

    memory_is_its_own = False  # torch's is in it

    def __init__(self, job, folder):
        super().__init__(job, folder)
        import openvino
        import torch
        import torchvision

        torch.manual_seed(0)
        model = torchvision.models.get_model(torchvision_name(job.model), weights=None).eval()
        self.images = np.moveaxis(job.images, -1, 1).copy()
        torch.onnx.export(model, torch.from_numpy(self.images), self.folder / "network.onnx")
        config = {"INFERENCE_PRECISION_HINT": HINTS[EXPORTED[job.precision]], "PERFORMANCE_HINT": "LATENCY"}
        self.network = openvino.Core().compile_model(self.folder / "network.onnx", "CPU", config)

    @property
    def name(self):
        return f"OpenVINO torchvision {torchvision_name(self.job.model)}"

    def inference(self, steps):
        for _ in range(steps):
            self.network(self.images, share_inputs=True)


EXPORTED = {"float32": "float32", "mixed_bfloat16": "bfloat16", "int8": "int8"}
"""What exported networks are called in a precision."""


class ExportedNetwork(Network):
    """This package's network as `export` writes it, but for the preprocessing; `load` is file to ready session."""

    memory_is_its_own = False  # the exporter's is in it
    format = None

    def __init__(self, job, folder):
        super().__init__(job, folder)
        keras.utils.set_random_seed(0)
        model, row = ours(job), FORMATS[self.format]
        facts = metadata(model, self.format, EXPORTED[job.precision], raw=True)
        self.path, self.images = self.folder / f"network{row.suffix}", job.images
        row.module.write(ExportSpec(model, facts, calibration=self.images), self.path)
        self.network = load_exported(self.path)

    @property
    def name(self):
        return f"{FORMATS[self.format].title} {self.job.model}"

    def inference(self, steps):
        for _ in range(steps):
            self.network(self.images)

    def load(self, steps):
        for _ in range(steps):
            load_exported(self.path)


class OnnxNetwork(ExportedNetwork):
    """In ONNX Runtime, on the best of its execution providers."""

    format = "onnx"


class OpenVinoNetwork(ExportedNetwork):
    """In OpenVINO on the CPU."""

    format = "openvino"


class LiteRtNetwork(ExportedNetwork):
    """In LiteRT on the CPU."""

    format = "litert"
