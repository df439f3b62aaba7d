"""What training examples are made of, and which of them stay in use."""
