"""torchvision's detectors as contenders of a benchmark: a script for an environment that has torchvision, not Keras."""

import runpy
import time
from pathlib import Path

import torch
import torchvision
from torchvision.models.detection.image_list import ImageList

FOLDER = Path(__file__).parent
serve = runpy.run_path(str(FOLDER / "protocol.py"))["serve"]
peak_memory = runpy.run_path(str(FOLDER.parent / "machine.py"))["peak_memory"]


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
        self.name = f"torchvision {job['model']}{', channels last' * self.channels_last}"
        self.bfloat16 = job["precision"] == "bfloat16"
        height, width = job["image_size"]
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = torchvision.models.get_model(job["model"], weights=None, weights_backbone=None).eval()
        raise_scores(model)
        model.transform = PaddedImages([(height, width)] * job["batch_size"])
        self.model = model.to(self.device, memory_format=order)
        images = torch.zeros(job["batch_size"], 3, -(-height // 32) * 32, -(-width // 32) * 32)
        images[..., :height, :width].normal_()
        self.images = images.to(self.device, memory_format=order)

    def detection(self, steps):
        """Detects objects in `steps` batches; returns when the device has finished."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            for _ in range(steps):
                detections = self.model(self.images)
        detections[0]["scores"].cpu()


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
