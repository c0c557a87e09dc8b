"""Audio for mmdiff: sound files and spectrograms."""
