"""Metrics on any features of any modality."""
