"""Hyperparameter search: depth, width and training of a network that fits a budget, with KerasTuner."""
