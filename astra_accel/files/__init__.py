"""What is on disk, whoever writes or reads it."""
