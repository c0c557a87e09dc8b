"""Point clouds for mmdiff: files of shapes, clouds and surfaces."""
