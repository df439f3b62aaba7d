"""Models that answer behind an endpoint."""
