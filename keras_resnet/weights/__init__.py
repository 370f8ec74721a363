"""Where weights come from, and how they get into a network and out of it."""
