"""A trained network at work elsewhere: folded, exported, and shown to give the same answers."""
