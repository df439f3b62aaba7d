"""Layers that compute differently from the model's own."""
