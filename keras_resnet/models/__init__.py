"""Networks as Keras models: created by name, inspected, transformed, used as feature extractors."""
