"""Networks as Keras models: created by name, described, inspected, transformed."""
