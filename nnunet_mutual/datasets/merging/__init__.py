"""The steps of the command ``merge``; :mod:`nnunet_mutual.datasets.merge` calls them in their order."""
