"""Files on disk, for all rooms that write or read them."""
