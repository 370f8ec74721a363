"""Networks with a method for each task of a benchmark: torchvision's, and this package's exported to other runtimes."""

from functools import cached_property

import keras
import numpy as np

from keras_resnet.benchmark.keras_networks import Network, create_network
from keras_resnet.deployment.exported import load_exported
from keras_resnet.deployment.formats.openvino_format import compile_model
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.serving import ExportSpec, export_metadata
from keras_resnet.machine import accelerator
from keras_resnet.variants import canonical_name

TORCHVISION = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"}
TORCHVISION |= {"resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"}
"""torchvision's names of its networks."""


def torchvision_name(model):
    """torchvision's name of a network, or None if it has none; its ResNet-50, v1.5, also stands for the paper's v1."""
    name = canonical_name(model).removesuffix("_v1_5")
    return name if name in TORCHVISION else None


class TorchNetwork(Network):
    """torchvision's network, channels last; bfloat16 by autocast."""

    def __init__(self, job, folder, compiled=False):
        super().__init__(job, folder)
        import torch

        torch.manual_seed(0)
        self.name = f"torchvision {torchvision_name(job.model)}{', compiled' if compiled else ''}"
        self.torch, self.device = torch, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self.create().to(self.device, memory_format=torch.channels_last)
        self.step = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images = torch.randn(job.batch_size, 3, job.image_size, job.image_size)
        self.images = images.to(self.device, memory_format=torch.channels_last)
        self.labels = torch.from_numpy(job.labels).to(self.device)

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
        mixed = self.job.precision == "bfloat16"
        return self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=mixed)


class OpenVinoTorchNetwork(Network):
    """torchvision's network, exported to ONNX by torch, in OpenVINO."""

    reports_memory = False  # it contains that of torch

    def __init__(self, job, folder):
        super().__init__(job, folder)
        import torch
        import torchvision

        torch.manual_seed(0)
        self.name = f"OpenVINO torchvision {torchvision_name(job.model)}"
        model = torchvision.models.get_model(torchvision_name(job.model), weights=None).eval()
        self.images = np.moveaxis(job.images, -1, 1).copy()
        torch.onnx.export(model, torch.from_numpy(self.images), self.folder / "network.onnx")
        self.network = compile_model(self.folder / "network.onnx", job.precision)

    def inference(self, steps):
        for _ in range(steps):
            self.network(self.images, share_inputs=True)


class ExportedNetwork(Network):
    """This package's network as `export` writes it with `raw=True`; `load` also starts the runtime."""

    reports_memory = False  # it contains that of the exporter

    def __init__(self, job, folder, format):
        super().__init__(job, folder)
        keras.utils.set_random_seed(0)
        model, row = create_network(job), FORMATS[format]
        metadata = export_metadata(model, format, job.precision, raw=True)
        self.path, self.images = self.folder / f"network{row.suffix}", job.images
        row.module.write(ExportSpec(model, metadata, calibration=self.images), self.path)
        self.network = load_exported(self.path)
        self.name = f"{row.title} {job.model}"

    def inference(self, steps):
        for _ in range(steps):
            self.network(self.images)

    def load(self, steps):
        for _ in range(steps):
            load_exported(self.path)
