"""torchvision's detectors and segmenters as contenders of a benchmark: a script for an environment without Keras."""

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
CLASSES, IGNORED, AUXILIARY_WEIGHT = 21, 255, 0.5
"""As in segmenter_spec.py and segmenter_training.py."""


class PaddedImages(torch.nn.Module):
    """In place of torchvision's preprocessing: the images are normalised, resized and padded already."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes

    def forward(self, images, targets=None):
        return ImageList(images, self.sizes), targets

    def postprocess(self, detections, *_):
        return detections


class Network:
    """One of torchvision's networks with random weights, and a batch of normally distributed images."""

    def __init__(self, job):
        torch.manual_seed(0)
        self.channels_last = job["contender"].endswith("channels_last")
        self.job, self.name = job, f"torchvision {job['model']}{', channels last' * self.channels_last}"
        self.bfloat16 = job["precision"] == "bfloat16"
        self.order = torch.channels_last if self.channels_last else torch.contiguous_format
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self.create().to(self.device, memory_format=self.order).eval()
        self.images = self.make_images().to(self.device, memory_format=self.order)

    def _precision(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


class Segmenter(Network):
    """torchvision's segmenter; in inference without its auxiliary head, which torchvision would compute."""

    def create(self, aux_loss=False):
        """torchvision's segmenter."""
        arguments = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
        return torchvision.models.get_model(self.job["model"], aux_loss=aux_loss, **arguments)

    def make_images(self):
        """The batch of images."""
        return torch.randn(self.job["batch_size"], 3, *self.job["image_size"])

    def inference(self, steps):
        """Computes the logits of `steps` batches; returns when the device has finished."""
        with torch.inference_mode(), self._precision():
            for _ in range(steps):
                logits = self.model(self.images)["out"]
        logits[0, 0, 0, 0].item()

    def train(self, steps):
        """Trains on the same batch `steps` times, as torchvision/references/segmentation/train.py does."""
        model, optimizer, masks = self._training
        for _ in range(steps):
            with self._precision():
                losses = {
                    name: torch.nn.functional.cross_entropy(logits, masks, ignore_index=IGNORED)
                    for name, logits in model(self.images).items()
                }
                loss = losses["out"] + AUXILIARY_WEIGHT * losses["aux"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()

    @cached_property
    def _training(self):
        """(the model that is trained, its optimizer, the true masks of the images)."""
        model = self.create(aux_loss=True).to(self.device, memory_format=self.order).train()
        parameters = {"auxiliary": [], "others": []}
        for name, parameter in model.named_parameters():
            parameters["auxiliary" if name.startswith("aux_classifier.") else "others"].append(parameter)
        groups = [{"params": parameters["others"]}, {"params": parameters["auxiliary"], "lr": 10 * LEARNING_RATE}]
        optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
        masks = torch.randint(CLASSES, (self.job["batch_size"], *self.job["image_size"]))
        return model, optimizer, masks.to(self.device)


class Detector(Network):
    """torchvision's detector.

    Scores are raised so that there are as many detections as the detector returns at most, as in this package's.
    """

    def create(self, frozen=False):
        """torchvision's detector for padded images, perhaps with frozen layers as for `train`."""
        name = self.job["model"]
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
        if frozen:
            freeze(model, torch.nn.BatchNorm2d if name.endswith("_v2") else FrozenBatchNorm2d)
        else:
            raise_scores(model)
        model.transform = PaddedImages([tuple(self.job["image_size"])] * self.job["batch_size"])
        return model

    def make_images(self):
        """The batch of images, padded."""
        height, width = self.job["image_size"]
        images = torch.zeros(self.job["batch_size"], 3, -(-height // 32) * 32, -(-width // 32) * 32)
        images[..., :height, :width].normal_()
        return images

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
        model = self.create(frozen=True).to(self.device, memory_format=self.order).train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
        size, padded = torch.tensor(self.job["image_size"]).flip(0), self.images.shape[2:]
        targets = [random_objects(size, padded) for _ in self.images]
        return model, optimizer, [{name: value.to(self.device) for name, value in row.items()} for row in targets]


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


def create(job):
    """The network for the fields of a Job."""
    return (Segmenter if job["model"].startswith(("fcn_", "deeplabv3_")) else Detector)(job)


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
    serve(create, measure)
