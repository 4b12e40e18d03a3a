"""What a check of an installation finds: one line, how bad it is, and what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from crosscoders._typing import typed

LEVELS = ("ok", "warning", "fault")


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What it is, such as "disk".
        level: "ok"; "warning" for what works but may not be what one wants; "fault" for what will fail.
        found: What was found, in a few words.
        advice: What to do about it; empty where all is well.
    """

    name: str
    level: str
    found: str
    advice: str = ""

    def line(self) -> str:
        """The check in one line."""
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.level:<8} {self.name}: {self.found}{advice}"


@typed
def guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """What a check finds; one that raises is a fault of its own, and the others go on.

    Args:
        name: What the line calls it if it raises.
        check: The check.
    """
    try:
        return check()
    except Exception as err:  # a doctor must not die of what the patient has
        return [Check(name=name, level="fault", found=f"the check failed ({type(err).__name__}: {err})")]
