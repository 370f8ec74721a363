"""From a trained network to one's own pictures: its features, and networks fine-tuned from it."""
