"""The only file that knows nnU-Net versions."""

from __future__ import annotations

#: First and last nnunetv2 release that the tests of this package have passed with.
TESTED_NNUNET = ("2.8.0", "2.8.1")
