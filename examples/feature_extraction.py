"""What a network sees in one's own photographs: features, a classifier on top of them, look-alikes, and a map.

    python examples/feature_extraction.py PHOTOS [MODEL] [WEIGHTS] [MAP]

PHOTOS has a folder "train" and a folder "val", each with a folder for each class. MODEL and WEIGHTS are as for
`keras-resnet predict`: a name and a tag or a file, such as resnet50 and imagenet; MAP is the PNG to draw.
"""

import sys
from pathlib import Path

import keras_resnet
from keras_resnet import transfer


def main(photos, model="resnet20", weights="cifar10", image="map.png"):
    network = keras_resnet.create(model, weights=weights)
    pyramid = keras_resnet.feature_extractor(network, endpoints=("stage1", "stage2", "stage3"))
    print("maps:", {name: tensor.shape[1:] for name, tensor in pyramid.output.items()})

    train, test = (transfer.extract(network, Path(photos) / part, skip_bad=True) for part in ("train", "val"))
    print(f"vectors: {train.vectors.shape} of the classes {', '.join(train.class_names)}")
    probe = transfer.linear_probe(train.vectors, train.labels, test.vectors, test.labels)
    print(f"a linear classifier on top gets {100 * probe.top1_accuracy:.1f} % of {len(test.labels)} test images right")

    (answers,) = transfer.nearest_images(test.vectors[:1], train.vectors, train.names, k=3)
    print(f"most like {test.names[0]}: " + ", ".join(f"{name} ({cosine:.2f})" for name, cosine in answers))
    points = transfer.feature_map(train.vectors)
    transfer.plot_feature_map(points, train.labels, train.class_names, image, f"{model}'s features")
    print(f"a map of the training images: {image}")


if __name__ == "__main__":
    main(*sys.argv[1:])
