"""nnunet_mutual: nnU-Net learns from data that is not fully labelled."""

__version__ = "0.1.0"
