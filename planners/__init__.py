"""nnU-Net planners of this package, imported as ``nnunet_mutual.planners``.

``__all__`` is a literal list: it is what ``-pl`` can name after ``nnunet_mutual register``. There are none so far; the
trainers run with the plans of nnU-Net's own planners.
"""

from __future__ import annotations

__all__: list[str] = []
