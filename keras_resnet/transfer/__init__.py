"""What a trained network is used for: features, probes on them, fine-tuning."""
