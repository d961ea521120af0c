"""A reader's eyes on pseudo labels: a page of what is doubtful, and what the reader says becomes true labels."""
