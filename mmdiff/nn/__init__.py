"""Layers for states of any number of dimensions; the building blocks of networks."""
