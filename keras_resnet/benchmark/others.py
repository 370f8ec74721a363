"""What is measured beside Keras: torchvision's networks, and ours as ONNX Runtime and OpenVINO run them."""

from functools import cached_property

import keras

from keras_resnet.benchmark.machine import accelerator
from keras_resnet.benchmark.networks import Network, ours
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
        pictures = torch.randn(job.batch_size, 3, job.image_size, job.image_size)
        self.pictures = pictures.to(self.device, memory_format=torch.channels_last)
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
                outputs = self.step(self.pictures)
        outputs[0, 0].item()  # waits for the device

    def train(self, steps):
        self.model.train()
        for _ in range(steps):
            with self._precision():
                loss = self.torch.nn.functional.cross_entropy(self.step(self.pictures), self.labels)
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


class ExportedNetwork(Network):
    """This package's network, exported with `Model.export`, then run without Keras; `load` is file to ready session."""

    memory_is_its_own = False  # the exporter's is in it
    runtime, format, suffix = None, None, None

    def __init__(self, job, folder):
        super().__init__(job, folder)
        keras.utils.set_random_seed(0)
        self.path, self.pictures = str(self.folder / f"network{self.suffix}"), job.pictures
        signature = [keras.InputSpec("float32", self.pictures.shape)]
        ours(job).export(self.path, format=self.format, verbose=False, input_signature=signature)
        self.session = self.open()

    @property
    def name(self):
        return f"{self.runtime} {self.job.model}"

    def inference(self, steps):
        for _ in range(steps):
            self.run()

    def load(self, steps):
        for _ in range(steps):
            self.open()


class OnnxNetwork(ExportedNetwork):
    """In ONNX Runtime, on the best of its execution providers."""

    runtime, format, suffix = "ONNX Runtime", "onnx", ".onnx"

    def open(self):
        import onnxruntime

        return onnxruntime.InferenceSession(self.path, providers=onnxruntime.get_available_providers())

    def run(self):
        return self.session.run(None, {self.session.get_inputs()[0].name: self.pictures})[0]


class OpenVinoNetwork(ExportedNetwork):
    """In OpenVINO on the CPU."""

    runtime, format, suffix = "OpenVINO", "openvino", ".xml"

    def open(self):
        import openvino

        precision = {"float32": "f32", "mixed_bfloat16": "bf16"}[self.job.precision]
        return openvino.Core().compile_model(self.path, "CPU", {"INFERENCE_PRECISION_HINT": precision})

    def run(self):
        return self.session(self.pictures)[0]
