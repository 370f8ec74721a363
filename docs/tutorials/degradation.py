"""The degradation experiment of He et al. 2015 (section 4.2, figure 6), on scikit-learn's digits.

    python docs/tutorials/degradation.py [WORKDIR] [EPOCHS] [DEPTHS]

Plain and residual networks of 20, 32, 44 and 56 layers are trained under one recipe, 40 epochs each. Run it again
to continue an interrupted study. `keras-resnet study degradation` does the same from the command line.
"""

import sys

from keras_resnet.studies.degradation import degradation


def main(workdir="runs/degradation", epochs=None, depths=None):
    changes = {"epochs": int(epochs)} if epochs else {}
    depths = tuple(int(depth) for depth in depths.split(",")) if depths else None
    result = degradation(workdir, size="digits", depths=depths, progress=print, **changes)
    for effect in result.effects:
        print(effect)
    print(f"{workdir}: degradation.png, degradation.md, degradation.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
