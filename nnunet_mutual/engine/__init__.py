"""Networks that learn together, the training step, checkpoints, validation."""
