"""Images for mmdiff."""
