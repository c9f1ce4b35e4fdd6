"""What a checkpoint must fit: contracts, other checkpoints."""
