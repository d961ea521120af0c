"""`nnunet_mutual export --container`: a folder to build a container from that segments images, for challenges."""
