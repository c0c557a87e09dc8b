"""Multichannel time series with missing values, for mmdiff."""
