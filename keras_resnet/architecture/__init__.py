"""What a residual network is: its layers, its specification, its graph. Imports Keras; TensorFlow for one kernel."""
