"""Stress testing methods, one folder per method."""
