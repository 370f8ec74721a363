"""A residual network of your own: specified, counted, built, and trained with `model.fit`.

    python examples/own_network.py [EPOCHS]

It has twelve layers, for the 8x8 images of scikit-learn's digits.
"""

import sys

import keras_resnet


def main(epochs="5"):
    spec = keras_resnet.ResNetSpec(
        block="basic", depths=(2, 2, 1), widths=(16, 32, 64), stem="cifar", stem_width=16, shortcut="B", drop_path=0.1
    )
    cost = keras_resnet.complexity(spec, classes=10, input_shape=(8, 8, 1))
    print(f"{spec.depth} layers, {cost.parameters:,} parameters, {cost.multiply_adds:,} multiply-adds per image")

    data = keras_resnet.load_dataset("digits")
    preprocess, train, test = data.preprocessing, data.train, data.test
    model = keras_resnet.build(spec, classes=10, input_shape=(8, 8, 1), name="my_network")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(preprocess(train.images), train.labels, epochs=int(epochs), batch_size=64, verbose=2)
    _, accuracy = model.evaluate(preprocess(test.images), test.labels, verbose=0)
    print(f"accuracy on {len(test)} test images: {accuracy:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
