"""What processes share, on a machine and between machines."""
