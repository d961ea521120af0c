"""Training-only networks and state."""
