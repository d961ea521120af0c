"""What trained networks say about labels that nobody drew: coded beside the true labels, filtered, and recorded."""
