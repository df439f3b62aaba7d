"""Whole runs from a configuration: training and evaluation. The only files that know all others."""
