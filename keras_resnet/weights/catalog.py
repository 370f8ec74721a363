"""WEIGHTS: (network, tag) -> Source. One row a published file, with its hash, preprocessing, licence and accuracy."""

import fnmatch
from dataclasses import dataclass

from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import unknown_name_error
from keras_resnet.variants import VARIANTS, canonical_name


@dataclass(frozen=True)
class Source:
    """One published weights file."""

    url: str
    """Where it is; without a scheme, the name of a file in `weights/assets`, which ships with the package."""
    digest: str
    """"md5:..." or "sha256:...", the latter maybe only its beginning, as torchvision puts it into the file's name."""
    preprocessing: Preprocessing
    licence: str
    top1: float
    """Published accuracy, percent, one crop: on ImageNet's validation set, on CIFAR-10's test set for "cifar10"."""
    top5: float | None = None
    headless: tuple[str, str] | None = None
    """(url, digest) of the file for include_top=False, where there is one."""


_CAFFE = Preprocessing(mode="caffe")
_TF = Preprocessing(mode="tf")
_KERAS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/resnet/{}_weights_tf_dim_ordering_tf_kernels{}.h5"
)
_TORCHVISION = "https://download.pytorch.org/models/{}-{}.pth"

# (network, MD5 with top, without, preprocessing, top-1 %): keras/src/applications/resnet.py, keras.io/api/applications
_KERAS_ROWS = (
    ("resnet50", "2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626", _CAFFE, 74.9),
    ("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21", _CAFFE, 76.4),
    ("resnet152", "100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c", _CAFFE, 76.6),
    ("resnet50v2", "3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917", _TF, 76.0),
    ("resnet101v2", "6343647c601c52e1368623803854d971", "c0ed64b8031c3730f411d2eb4eea35b5", _TF, 77.2),
    ("resnet152v2", "a49b44d1979771252814e80f8ec446f9", "ed17cf2e0169df9d443503ef94b23b33", _TF, 78.0),
)

# (network, tag, beginning of the SHA-256, shorter side before the crop, top-1 %, top-5 %): torchvision/models/resnet.py
_TORCHVISION_ROWS = (
    ("resnet18", "V1", "f37072fd", 256, 69.758, 89.078),
    ("resnet34", "V1", "b627a593", 256, 73.314, 91.420),
    ("resnet50", "V1", "0676ba61", 256, 76.130, 92.862),
    ("resnet50", "V2", "11ad3fa6", 232, 80.858, 95.434),
    ("resnet101", "V1", "63fe2227", 256, 77.374, 93.546),
    ("resnet101", "V2", "cd907fc2", 232, 81.886, 95.780),
    ("resnet152", "V1", "394f9c45", 256, 78.312, 94.046),
    ("resnet152", "V2", "f82ba261", 232, 82.284, 96.002),
    ("resnext50_32x4d", "V1", "7cdf4587", 256, 77.618, 93.698),
    ("resnext50_32x4d", "V2", "1a0047aa", 232, 81.198, 95.340),
    ("resnext101_32x8d", "V1", "8ba56ff5", 256, 79.312, 94.526),
    ("resnext101_32x8d", "V2", "110c445d", 232, 82.834, 96.228),
    ("resnext101_64x4d", "V1", "173b62eb", 232, 83.246, 96.454),
    ("wide_resnet50_2", "V1", "95faca4d", 256, 78.468, 94.086),
    ("wide_resnet50_2", "V2", "9ba9bcbe", 232, 81.602, 95.758),
    ("wide_resnet101_2", "V1", "32ee1156", 256, 78.848, 94.284),
    ("wide_resnet101_2", "V2", "d733dc28", 232, 82.510, 96.020),
)

# (network, SHA-256 of its file in weights/assets, top-1 %, top-5 %): trained by this package, see docs/RESULTS.md
_OWN_ROWS = (("resnet20_cifar", "4517f15273f841f664f063d083d0fdffc2f4ad7ed4673c9bda0274b009a52b10", 91.35, 99.71),)

# network -> timm's tags for it (timm 1.0.31, list_pretrained); any other hf://timm/<network>.<tag> is tried as well
TIMM = {
    "resnet18": "a1_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k tv_in1k",
    "resnet18d": "ra2_in1k ra4_e3600_r224_in1k",
    "resnet26": "bt_in1k",
    "resnet26d": "bt_in1k",
    "resnet34": "a1_in1k a2_in1k a3_in1k bt_in1k gluon_in1k ra4_e3600_r224_in1k tv_in1k",
    "resnet34d": "ra2_in1k",
    "resnet50": "a1_in1k a1h_in1k a2_in1k a3_in1k am_in1k b1k_in1k b2k_in1k bamboo bt_in1k c1_in1k c2_in1k d_in1k "
    "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k ra_in1k ram_in1k tv2_in1k tv_in1k",
    "resnet50d": "a1_in1k a2_in1k a3_in1k gluon_in1k ra2_in1k ra4_e3600_r224_in1k",
    "resnet101": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
    "resnet101d": "gluon_in1k ra2_in1k",
    "resnet152": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
    "resnet152d": "gluon_in1k ra2_in1k",
    "resnetrs50": "tf_in1k",
    "resnetv2_50": "a1h_in1k",
    "resnetv2_101": "a1h_in1k",
    "resnext50_32x4d": "a1_in1k a1h_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k "
    "ra_in1k tv2_in1k tv_in1k",
    "resnext101_32x8d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k fb_wsl_ig1b_ft_in1k tv2_in1k tv_in1k",
    "resnext101_64x4d": "c1_in1k gluon_in1k tv_in1k",
    "seresnet50": "a1_in1k a2_in1k a3_in1k ra2_in1k",
    "wide_resnet50_2": "racm_in1k tv2_in1k tv_in1k",
    "wide_resnet101_2": "tv2_in1k tv_in1k",
}


def _sources():
    for name, digest, headless_digest, preprocessing, top1 in _KERAS_ROWS:
        headless = (_KERAS.format(name, "_notop"), f"md5:{headless_digest}")
        url = _KERAS.format(name, "")
        yield (name, "imagenet"), Source(url, f"md5:{digest}", preprocessing, "MIT", top1, headless=headless)
    for name, digest, top1, top5 in _OWN_ROWS:
        pixels = Preprocessing(mode="cifar", size=32, resize=None)
        file = f"{name.removesuffix('_cifar')}_cifar10.safetensors"
        yield (name, "cifar10"), Source(file, f"sha256:{digest}", pixels, "Apache-2.0", top1, top5)
    for name, version, digest, resize, top1, top5 in _TORCHVISION_ROWS:
        url, preprocessing = _TORCHVISION.format(name, digest), Preprocessing(mode="torch", resize=resize)
        source = Source(url, f"sha256:{digest}", preprocessing, "BSD-3-Clause", top1, top5)
        for variant in {name, f"{name}_v1_5"} & VARIANTS.keys():
            yield (variant, f"torchvision:IMAGENET1K_{version}"), source


WEIGHTS = dict(_sources())
# "imagenet" is what people ask for; networks that keras.applications lacks get torchvision's plainest recipe
WEIGHTS |= {
    (name, "imagenet"): source
    for (name, tag), source in WEIGHTS.items()
    if tag == "torchvision:IMAGENET1K_V1" and (name, "imagenet") not in WEIGHTS
}


def timm_name(name):
    """timm's name for one of our networks: the v1.5 networks are its plain ones."""
    return canonical_name(name).removesuffix("_v1_5")


def list_weights(name, pattern="*"):
    """Tags that `weights=` takes for a network: those of WEIGHTS, then timm's.

    Args:
        name: name of a network.
        pattern: as in a shell: "torchvision:*".
    """
    name = canonical_name(name)
    tags = [tag for variant, tag in WEIGHTS if variant == name]
    timm = timm_name(name)
    tags += [f"hf://timm/{timm}.{tag}" for tag in TIMM.get(timm, "").split()]
    return fnmatch.filter(tags, pattern)


def unknown_weights(name, weights):
    """The error for a `weights` that is neither None nor a tag of this network nor a file."""
    tags = list_weights(name)
    of_it = f"a tag of `list_weights({name!r})`" if tags else "no tag, since this network has no published weights"
    return unknown_name_error("weights", weights, tags, f"None, {of_it}, or a path to a weights file that exists")
