"""Residual networks: layers, blocks, ResNetSpec and the Keras graph. Needs only Keras."""
