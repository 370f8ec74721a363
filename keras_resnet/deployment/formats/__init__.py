"""The file formats that networks are exported to: the table of them, and a module for each."""
