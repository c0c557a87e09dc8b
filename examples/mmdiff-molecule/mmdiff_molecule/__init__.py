"""Small molecules for mmdiff."""
