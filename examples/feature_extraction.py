"""Features of your own photographs: a linear classifier, the most similar images, and a t-SNE plot.

    python examples/feature_extraction.py PHOTOS [MODEL] [WEIGHTS] [PLOT]

PHOTOS has a folder "train" and a folder "val", each with a folder for each class. MODEL and WEIGHTS are as for
`keras-resnet predict`: a name and a tag or a file, such as resnet50 and imagenet; PLOT is the PNG file to write.
"""

import sys
from pathlib import Path

import keras_resnet
from keras_resnet import transfer


def main(photos, model="resnet20", weights="cifar10", plot="features.png"):
    network = keras_resnet.create(model, weights=weights)
    pyramid = keras_resnet.feature_extractor(network, endpoints=("stage1", "stage2", "stage3"))
    print("feature maps:", {name: tensor.shape[1:] for name, tensor in pyramid.output.items()})

    train, test = (transfer.extract(network, Path(photos) / part, skip_bad=True) for part in ("train", "val"))
    print(f"features: {train.vectors.shape}, classes {', '.join(train.class_names)}")
    probe = transfer.linear_probe(train.vectors, train.labels, test.vectors, test.labels)
    print(f"accuracy of a linear classifier: {probe.top1_accuracy:.1%} of {len(test.labels)} test images")

    (neighbours,) = transfer.nearest_images(test.vectors[:1], train.vectors, train.names, k=3)
    print(f"most similar to {test.names[0]}: " + ", ".join(f"{name} ({cosine:.2f})" for name, cosine in neighbours))
    points = transfer.feature_map(train.vectors)
    transfer.plot_feature_map(points, train.labels, train.class_names, plot, f"{model}'s features")
    print(f"t-SNE plot of the training images: {plot}")


if __name__ == "__main__":
    main(*sys.argv[1:])
