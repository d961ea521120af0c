"""The command ``nnunet_mutual demo``: the whole path on generated images."""
