"""Accuracy of weights from torch, with their own preprocessing and with that of keras.applications; and how far the
pixels of a preprocessing layer are from Pillow's.

    python docs/tutorials/wrong_preprocessing.py FOLDER WEIGHTS

FOLDER has ImageNet photographs whose names begin with the WordNet id, WEIGHTS is a file for ResNet-18.
"""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

import keras_resnet


def main(folder, weights):
    model = keras_resnet.create("resnet18", weights=weights)
    paths = sorted(Path(folder).glob("*.JPEG"))
    preprocess = keras_resnet.preprocessing(model)
    pixels = preprocess.pixels(paths).astype("float32")  # resized and cropped, 0..255
    layer = preprocess.layer()
    inputs = {
        "preprocessing(model)": preprocess(paths),
        "preprocess_input(images, model)": keras_resnet.preprocess_input(pixels, model),
        "preprocessing(model).layer()": np.stack(
            [layer(keras.utils.img_to_array(keras.utils.load_img(path))) for path in paths]
        ),
        "keras.applications.resnet.preprocess_input": keras.applications.resnet.preprocess_input(pixels.copy()),
        "keras.applications.mobilenet.preprocess_input": keras.applications.mobilenet.preprocess_input(pixels.copy()),
        "pixels in 0..255": pixels,
        "pixels in 0..1": pixels / 255,
    }
    for name, images in inputs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predictions = keras_resnet.decode_predictions(model.predict(images, verbose=0), top=1)
        right = sum(path.name.startswith(best[0][0]) for path, best in zip(paths, predictions, strict=True))
        print(f"{name}: {right} of {len(paths)} right")
    for interpolation in ("bilinear", "bicubic"):
        # mode "pixels": levels in 0..255
        resized = replace(preprocess, mode="pixels", interpolation=interpolation)
        layer = resized.layer()
        unrounded = np.stack([layer(keras.utils.img_to_array(keras.utils.load_img(path))) for path in paths])
        differences = abs(unrounded - resized(paths))
        print(
            f"layer, {interpolation}: {differences.mean():.2f} levels from Pillow on average, at most "
            f"{differences.max():.1f}, more than 1.01 in {(differences > 1.01).mean():.2%} of the values"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
