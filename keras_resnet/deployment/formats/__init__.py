"""The file formats a network is exported to: a module each, and their table."""
