"""What a check finds: one sentence each, with its severity."""

from __future__ import annotations

from dataclasses import dataclass

ERROR = "error"  # training must not start like this
WARNING = "warning"  # may be right; somebody who knows the patients should look


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        severity: ERROR or WARNING.
        place: the file, case, label or fold that it is about.
        text: what was found and what to do, for somebody who knows the images but not the program.
    """

    severity: str
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.severity.upper():7s} {self.place}: {self.text}"
