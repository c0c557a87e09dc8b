"""Video for mmdiff: films and clips."""
