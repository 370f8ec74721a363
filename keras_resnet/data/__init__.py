"""Images in, names out: reading, preparing, augmenting, batching, and the names of classes."""
