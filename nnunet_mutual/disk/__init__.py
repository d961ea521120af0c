"""Writing whole or not at all, and names that stay in their folder."""
