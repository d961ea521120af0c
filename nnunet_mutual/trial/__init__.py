"""`nnunet_mutual trial`: which trainer pays on a group's own data."""
