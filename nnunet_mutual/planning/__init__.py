"""Plans, settings in plans, memory."""
