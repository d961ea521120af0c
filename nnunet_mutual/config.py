"""Where :class:`Settings` was until 0.1.0, for trainers of others; the name will be gone after 0.2."""

from nnunet_mutual.settings import Settings

__all__ = ["Settings"]
