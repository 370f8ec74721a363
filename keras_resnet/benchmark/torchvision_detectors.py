"""torchvision's detectors as contenders of a benchmark: a script for an environment that has torchvision, not Keras."""

import runpy
import time
from functools import cached_property
from pathlib import Path

import torch
import torchvision
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

FOLDER = Path(__file__).parent
serve = runpy.run_path(str(FOLDER / "protocol.py"))["serve"]
peak_memory = runpy.run_path(str(FOLDER.parent / "machine.py"))["peak_memory"]

OBJECTS, SIDES = 10, (1 / 16, 1 / 2)
LEARNING_RATE, FEATURE_SCALE = 1e-5, 1 / 64
"""As in detector_training.py."""


class PaddedImages(torch.nn.Module):
    """In place of torchvision's preprocessing: the images are normalised, resized and padded already."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes

    def forward(self, images, targets=None):
        return ImageList(images, self.sizes), targets

    def postprocess(self, detections, *_):
        return detections


class Detector:
    """torchvision's detector with random weights, and normally distributed images.

    Scores are raised so that there are as many detections as the detector returns at most, as in this package's.
    """

    def __init__(self, job):
        torch.manual_seed(0)
        self.channels_last = job["contender"].endswith("channels_last")
        self.job, self.name = job, f"torchvision {job['model']}{', channels last' * self.channels_last}"
        self.bfloat16 = job["precision"] == "bfloat16"
        height, width = job["image_size"]
        self.order = torch.channels_last if self.channels_last else torch.contiguous_format
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self.create().eval()
        raise_scores(self.model)
        images = torch.zeros(job["batch_size"], 3, -(-height // 32) * 32, -(-width // 32) * 32)
        images[..., :height, :width].normal_()
        self.images = images.to(self.device, memory_format=self.order)

    def create(self, frozen=False):
        """torchvision's detector for padded images, on the device, perhaps with frozen layers as for `train`."""
        name = self.job["model"]
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
        if frozen:
            freeze(model, torch.nn.BatchNorm2d if name.endswith("_v2") else FrozenBatchNorm2d)
        model.transform = PaddedImages([tuple(self.job["image_size"])] * self.job["batch_size"])
        return model.to(self.device, memory_format=self.order)

    def detection(self, steps):
        """Detects objects in `steps` batches; returns when the device has finished."""
        with torch.inference_mode(), self._precision():
            for _ in range(steps):
                detections = self.model(self.images)
        detections[0]["scores"].cpu()

    def train(self, steps):
        """Trains on the same batch `steps` times, as torchvision/references/detection/engine.py does."""
        model, optimizer, targets = self._training
        for _ in range(steps):
            with self._precision():
                loss = sum(model(self.images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()

    @cached_property
    def _training(self):
        """(the model that is trained, its optimizer, the true objects of the images)."""
        model = self.create(frozen=True).train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
        size, padded = torch.tensor(self.job["image_size"]).flip(0), self.images.shape[2:]
        targets = [random_objects(size, padded) for _ in self.images]
        return model, optimizer, [{name: value.to(self.device) for name, value in row.items()} for row in targets]

    def _precision(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


def freeze(model, norm_layer):
    """Replaces the backbone by one as torchvision builds it for published weights: the last three stages are trained.

    The first convolution is scaled as that of this package's detector.
    """
    levels = list(range(5 - len(model.backbone.body.return_layers), 5))
    new = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm_layer, returned_layers=levels)
    with torch.no_grad():
        new.body.conv1.weight.mul_(FEATURE_SCALE)
    model.backbone.body = new.body


def random_objects(size, padded):
    """The target of an image of a size, (width, height): boxes in random places, and masks of the padded size."""
    sides = size * (SIDES[0] + torch.rand(OBJECTS, 2) * (SIDES[1] - SIDES[0]))
    corners = torch.rand(OBJECTS, 2) * (size - sides)
    boxes = torch.cat([corners, corners + sides], dim=1)
    masks = torch.zeros(OBJECTS, *padded, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return {"boxes": boxes, "labels": torch.randint(1, 91, (OBJECTS,)), "masks": masks}


def raise_scores(model):
    """Raises the biases of class scores as `keras_resnet.benchmark.detectors.raise_scores` does."""
    with torch.no_grad():
        if hasattr(model, "roi_heads"):
            model.roi_heads.box_predictor.cls_score.bias[1:6] += 5
        else:
            model.head.classification_head.cls_logits.bias.zero_()


def measure(network, task, steps):
    """Runs `steps` steps of a task: the values that `keras_resnet.benchmark.worker.measure` returns."""
    started, cpu_started = time.perf_counter(), time.process_time()
    getattr(network, task)(steps)
    on_gpu = network.device.type == "cuda"
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "peak_memory": peak_memory(),
        "device": torch.cuda.get_device_name() if on_gpu else None,
        "peak_device_memory": torch.cuda.max_memory_allocated() if on_gpu else None,
    }


if __name__ == "__main__":
    serve(Detector, measure)
