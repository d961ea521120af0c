"""The steps of the command ``merge``; :mod:`nnunet_mutual.datasets.merge.command` calls them in their order."""
