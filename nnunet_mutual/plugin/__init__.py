"""How nnU-Net finds trainers and planners; the only room that knows nnU-Net's versions."""

from nnunet_mutual.plugin.find import resolve

__all__ = ["resolve"]  # what shims import that ``register`` has written
