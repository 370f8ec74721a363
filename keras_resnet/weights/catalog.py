"""WEIGHTS: one PretrainedWeights row per published file, with URL, hash, preprocessing, license and accuracy."""

import fnmatch
from dataclasses import dataclass

from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.errors import check_known, unknown_name_error, value_error
from keras_resnet.variants import TASKS, VARIANTS, canonical_name


@dataclass(frozen=True)
class PretrainedWeights:
    """A published weights file."""

    url: str
    """URL of the file, or the name of a file in `weights/assets`, which is part of the package."""
    digest: str
    """"md5:..." or "sha256:..."; the latter may be abbreviated, as in the names of torchvision's files."""
    preprocessing: Preprocessing | DetectionPreprocessing | SegmentationPreprocessing
    license: str
    top1_accuracy: float | None = None
    """Published accuracy from 0 to 1, of single center crops: on ImageNet's validation set; for "cifar10" on CIFAR-10's
    test set."""
    top5_accuracy: float | None = None
    box_ap: float | None = None
    """Published average precision of boxes from 0 to 1, over IoU 0.5 to 0.95, on COCO's validation set of 2017."""
    mask_ap: float | None = None
    """The same for masks."""
    mean_iou: float | None = None
    """Published mean over the classes of the intersection over union of their pixels, from 0 to 1, on the images of
    COCO's validation set of 2017 with objects of PASCAL VOC's classes."""
    pixel_accuracy: float | None = None
    """Published share of the pixels whose class is right, of the same images."""
    no_top: tuple[str, str] | None = None
    """(url, digest) of the file for include_top=False, if there is one."""


_CAFFE = Preprocessing(mode="caffe")
_TF = Preprocessing(mode="tf")
_KERAS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/resnet/{}_weights_tf_dim_ordering_tf_kernels{}.h5"
)
_TORCHVISION = "https://download.pytorch.org/models/{}-{}.pth"

# (network, MD5 with top, MD5 without, preprocessing, top-1 accuracy):
# keras/src/applications/resnet.py, keras.io/api/applications
_KERAS_ROWS = (
    ("resnet50", "2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626", _CAFFE, 0.749),
    ("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21", _CAFFE, 0.764),
    ("resnet152", "100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c", _CAFFE, 0.766),
    ("resnet50v2", "3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917", _TF, 0.76),
    ("resnet101v2", "6343647c601c52e1368623803854d971", "c0ed64b8031c3730f411d2eb4eea35b5", _TF, 0.772),
    ("resnet152v2", "a49b44d1979771252814e80f8ec446f9", "ed17cf2e0169df9d443503ef94b23b33", _TF, 0.78),
)

# (network, tag, beginning of the SHA-256, resized shorter side before the crop, top-1 and top-5 accuracy):
# torchvision/models/resnet.py
_TORCHVISION_ROWS = (
    ("resnet18", "V1", "f37072fd", 256, 0.69758, 0.89078),
    ("resnet34", "V1", "b627a593", 256, 0.73314, 0.9142),
    ("resnet50", "V1", "0676ba61", 256, 0.7613, 0.92862),
    ("resnet50", "V2", "11ad3fa6", 232, 0.80858, 0.95434),
    ("resnet101", "V1", "63fe2227", 256, 0.77374, 0.93546),
    ("resnet101", "V2", "cd907fc2", 232, 0.81886, 0.9578),
    ("resnet152", "V1", "394f9c45", 256, 0.78312, 0.94046),
    ("resnet152", "V2", "f82ba261", 232, 0.82284, 0.96002),
    ("resnext50_32x4d", "V1", "7cdf4587", 256, 0.77618, 0.93698),
    ("resnext50_32x4d", "V2", "1a0047aa", 232, 0.81198, 0.9534),
    ("resnext101_32x8d", "V1", "8ba56ff5", 256, 0.79312, 0.94526),
    ("resnext101_32x8d", "V2", "110c445d", 232, 0.82834, 0.96228),
    ("resnext101_64x4d", "V1", "173b62eb", 232, 0.83246, 0.96454),
    ("wide_resnet50_2", "V1", "95faca4d", 256, 0.78468, 0.94086),
    ("wide_resnet50_2", "V2", "9ba9bcbe", 232, 0.81602, 0.95758),
    ("wide_resnet101_2", "V1", "32ee1156", 256, 0.78848, 0.94284),
    ("wide_resnet101_2", "V2", "d733dc28", 232, 0.8251, 0.9602),
)

# (detector, beginning of the SHA-256, AP of boxes, of masks): torchvision/models/detection
_DETECTION_ROWS = (
    ("fasterrcnn_resnet50_fpn", "258fb6c6", 0.370, None),
    ("fasterrcnn_resnet50_fpn_v2", "dd69338a", 0.467, None),
    ("maskrcnn_resnet50_fpn", "bf2d0c1e", 0.379, 0.346),
    ("maskrcnn_resnet50_fpn_v2", "73cbd019", 0.474, 0.418),
    ("retinanet_resnet50_fpn", "eeacb38b", 0.364, None),
    ("retinanet_resnet50_fpn_v2", "5905b1c5", 0.415, None),
)

# (segmenter, beginning of the SHA-256, mean IoU, pixel accuracy): torchvision/models/segmentation
_SEGMENTATION_ROWS = (
    ("fcn_resnet50", "1167a1af", 0.605, 0.914),
    ("fcn_resnet101", "7ecb50ca", 0.637, 0.919),
    ("deeplabv3_resnet50", "cd0a2569", 0.664, 0.924),
    ("deeplabv3_resnet101", "586e9e4e", 0.674, 0.924),
)

# timm's name of a network -> its tags (timm 1.0.31, list_pretrained); other hf://timm/<network>.<tag> work too
TIMM = {
    "ecaresnet26t": "ra2_in1k",
    "ecaresnet50d": "miil_in1k",
    "ecaresnet50t": "a1_in1k a2_in1k a3_in1k ra2_in1k",
    "ecaresnet101d": "miil_in1k",
    "ecaresnet269d": "ra2_in1k",
    "ecaresnetlight": "miil_in1k",
    "resnet18": "a1_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k tv_in1k",
    "resnet18d": "ra2_in1k ra4_e3600_r224_in1k",
    "resnet26": "bt_in1k",
    "resnet26d": "bt_in1k",
    "resnet26t": "ra2_in1k",
    "resnet34": "a1_in1k a2_in1k a3_in1k bt_in1k gluon_in1k ra4_e3600_r224_in1k tv_in1k",
    "resnet34d": "ra2_in1k",
    "resnet50": "a1_in1k a1h_in1k a2_in1k a3_in1k am_in1k b1k_in1k b2k_in1k bamboo bt_in1k c1_in1k c2_in1k d_in1k "
    "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k ra_in1k ram_in1k tv2_in1k tv_in1k",
    "resnet50c": "gluon_in1k",
    "resnet50s": "gluon_in1k",
    "resnet50d": "a1_in1k a2_in1k a3_in1k gluon_in1k ra2_in1k ra4_e3600_r224_in1k",
    "resnet101": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
    "resnet101c": "gluon_in1k",
    "resnet101d": "gluon_in1k ra2_in1k",
    "resnet101s": "gluon_in1k",
    "resnet152": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
    "resnet152c": "gluon_in1k",
    "resnet152d": "gluon_in1k ra2_in1k",
    "resnet152s": "gluon_in1k",
    "resnet200d": "ra2_in1k",
    **dict.fromkeys([f"resnetrs{depth}" for depth in (50, 101, 152, 200, 270, 350, 420)], "tf_in1k"),
    "resnetv2_50": "a1h_in1k",
    "resnetv2_101": "a1h_in1k",
    "resnext50_32x4d": "a1_in1k a1h_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k "
    "ra_in1k tv2_in1k tv_in1k",
    "resnext50d_32x4d": "bt_in1k",
    "resnext101_32x4d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k",
    "resnext101_32x8d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k fb_wsl_ig1b_ft_in1k tv2_in1k tv_in1k",
    "resnext101_32x16d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k fb_wsl_ig1b_ft_in1k",
    "resnext101_32x32d": "fb_wsl_ig1b_ft_in1k",
    "resnext101_64x4d": "c1_in1k gluon_in1k tv_in1k",
    "seresnet50": "a1_in1k a2_in1k a3_in1k ra2_in1k",
    "seresnet152d": "ra2_in1k",
    "seresnext26d_32x4d": "bt_in1k",
    "seresnext26t_32x4d": "bt_in1k",
    "seresnext50_32x4d": "gluon_in1k racm_in1k",
    "seresnext101_32x4d": "gluon_in1k",
    "seresnext101_32x8d": "ah_in1k",
    "seresnext101_64x4d": "gluon_in1k",
    "seresnext101d_32x8d": "ah_in1k",
    "wide_resnet50_2": "racm_in1k tv2_in1k tv_in1k",
    "wide_resnet101_2": "tv2_in1k tv_in1k",
}


def _rows():
    for name, version, digest, resize, top1, top5 in _TORCHVISION_ROWS:
        url, preprocessing = _TORCHVISION.format(name, digest), Preprocessing(mode="torch", resize=resize)
        row = PretrainedWeights(url, f"sha256:{digest}", preprocessing, "BSD-3-Clause", top1, top5)
        for variant in {name, f"{name}_v1_5"} & VARIANTS.keys():
            if version == "V1":
                yield (variant, "imagenet"), row
            yield (variant, f"torchvision:IMAGENET1K_{version}"), row
    for name, digest, no_top_digest, preprocessing, top1 in _KERAS_ROWS:
        no_top = (_KERAS.format(name, "_notop"), f"md5:{no_top_digest}")
        url = _KERAS.format(name, "")
        yield (name, "imagenet"), PretrainedWeights(url, f"md5:{digest}", preprocessing, "MIT", top1, no_top=no_top)
    for name, digest, box_ap, mask_ap in _DETECTION_ROWS:
        url = _TORCHVISION.format(f"{name}_coco", digest)
        row = PretrainedWeights(
            url, f"sha256:{digest}", DetectionPreprocessing(), "BSD-3-Clause", box_ap=box_ap, mask_ap=mask_ap
        )
        for tag in ("coco", "torchvision:COCO_V1"):
            yield (name, tag), row
    for name, digest, mean_iou, pixel_accuracy in _SEGMENTATION_ROWS:
        url, preprocessing = _TORCHVISION.format(f"{name}_coco", digest), SegmentationPreprocessing(shorter_side=520)
        row = PretrainedWeights(
            url,
            f"sha256:{digest}",
            preprocessing,
            "BSD-3-Clause",
            mean_iou=mean_iou,
            pixel_accuracy=pixel_accuracy,
        )
        for tag in ("coco_voc", "torchvision:COCO_WITH_VOC_LABELS_V1"):
            yield (name, tag), row
    digest = "sha256:4517f15273f841f664f063d083d0fdffc2f4ad7ed4673c9bda0274b009a52b10"
    preprocessing = Preprocessing(mode="cifar", size=32, resize=None)
    row = PretrainedWeights("resnet20_cifar10.safetensors", digest, preprocessing, "Apache-2.0", 0.9135, 0.9971)
    yield ("resnet20_cifar", "cifar10"), row  # trained by this package: docs/RESULTS.md


WEIGHTS = dict(_rows())
"""(network, tag) -> PretrainedWeights. The tag "imagenet" means the weights of keras.applications, and torchvision's
IMAGENET1K_V1 for networks that keras.applications does not have; "coco" and "coco_voc" mean torchvision's."""


def timm_name(name: str) -> str:
    """timm's name of a network of VARIANTS; timm's ResNets are the v1.5 networks."""
    return canonical_name(name).removesuffix("_v1_5")


TIMM_NETWORKS = {
    timm_name(name): name
    for name, spec in VARIANTS.items()
    if spec.stem != "cifar" and spec.shortcut in ("B", "pooled") and not spec.conv_bias
}
"""timm's name of a network -> ours, for every network of VARIANTS that timm has."""


def list_models(pattern: str = "*", pretrained: bool = False, task: str = "classification") -> list[str]:
    """Names of the networks of a task that match a shell-style pattern, in the order of its row of TASKS.

    >>> from keras_resnet import list_models
    >>> list_models("resnext101_64*")
    ['resnext101_64x4d']
    >>> list_models("plain*"), list_models("plain*", pretrained=True)
    (['plain18', 'plain34', 'plain20_cifar', 'plain32_cifar', 'plain44_cifar', 'plain56_cifar'], [])
    >>> list_models("maskrcnn*", task="detection", pretrained=True)
    ['maskrcnn_resnet50_fpn', 'maskrcnn_resnet50_fpn_v2']

    Args:
        pattern: shell-style wildcards, such as "*cifar*".
        pretrained: whether to list only networks with published weights, those of `list_weights`.
        task: "classification", "detection", "localization" or "segmentation".

    Raises:
        ValueError: for an unknown task.
    """
    if not isinstance(pattern, str):
        raise value_error("pattern", pattern, "names as in a shell, such as '*cifar*'")
    check_known("task", task, TASKS)
    return [name for name in fnmatch.filter(TASKS[task], pattern) if not pretrained or list_weights(name)]


def list_weights(name: str, pattern: str = "*") -> list[str]:
    """List the tags of pretrained weights for a network.

    >>> import keras_resnet
    >>> keras_resnet.list_weights("resnet50_v1_5", "torchvision:*")
    ['torchvision:IMAGENET1K_V1', 'torchvision:IMAGENET1K_V2']

    Args:
        name: name of a network in `list_models()`.
        pattern: shell-style wildcards, such as "torchvision:*".

    Returns:
        Tags for the argument `weights` of `create`: those of WEIGHTS, then timm's.
    """
    name = canonical_name(name)
    tags = [tag for variant, tag in WEIGHTS if variant == name]
    timm = timm_name(name)
    tags += [f"hf://timm/{timm}.{tag}" for tag in TIMM.get(timm, "").split()]
    return fnmatch.filter(tags, pattern)


def unknown_weights_error(name: str, weights: object) -> ValueError:
    """The error for a `weights` that is neither None nor a tag of the network nor an existing file."""
    tags = list_weights(name)
    known = f", a tag of `list_weights({name!r})`," if tags else f", as {name} has no published weights,"
    return unknown_name_error("weights", weights, tags, f"None{known} or a path to an existing weights file")
