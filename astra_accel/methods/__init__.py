"""Ways of stress testing, one folder a method."""
