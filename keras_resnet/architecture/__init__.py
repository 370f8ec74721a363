"""What a residual network is: its layers, its specification, its graph. Imports Keras alone."""
