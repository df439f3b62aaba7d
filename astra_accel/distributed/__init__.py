"""What processes share, on one machine and across machines."""
