"""Datasets, the training loop and its figures."""
