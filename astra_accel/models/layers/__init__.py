"""Layers that compute in another way than the model's own."""
