"""Generators, which continue contexts for a role: the model itself, in this process, or an inference engine."""
