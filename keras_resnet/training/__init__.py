"""From pictures to a trained network."""
