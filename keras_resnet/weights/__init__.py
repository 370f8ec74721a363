"""Pretrained weights: catalog, download, file formats, layouts; loading and saving."""
