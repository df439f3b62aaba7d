"""Log-probs and values of token sequences: packed as a prefix tree, or padded."""
