"""Parameters and multiply-adds of AlexNet and ResNet-18, layer by layer.

    python examples/alexnet.py [PREFIX]

Prints a table for each network, and plots it to PREFIX_alexnet.png and PREFIX_resnet18.png.
"""

import sys

import keras_resnet
from keras_resnet import analysis


def main(prefix="costs"):
    networks = {
        "AlexNet": analysis.alexnet(initialize=False),
        "ResNet-18": keras_resnet.build(keras_resnet.get_spec("resnet18_a"), initialize=False),
    }
    for name, model in networks.items():
        costs = analysis.layer_costs(model)
        total = analysis.total_cost(costs)
        print(f"{name}: {total.parameters:,} parameters, {total.multiply_adds:,} multiply-adds")
        for cost in costs:
            if cost.multiply_adds:
                size = "x".join(map(str, cost.output_shape))
                print(f"  {cost.name:24} {size:12} {cost.parameters:>12,} {cost.multiply_adds:>14,}")
        analysis.plot_layer_costs(costs, f"{prefix}_{name.lower().replace('-', '')}.png", name)


if __name__ == "__main__":
    main(*sys.argv[1:])
