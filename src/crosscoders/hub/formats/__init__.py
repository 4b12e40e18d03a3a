"""Crosscoders in the formats of other libraries, detected by their keys and shapes."""

from crosscoders.hub.formats.export_saelens import export_saelens
from crosscoders.hub.formats.read import read_foreign
from crosscoders.hub.formats.result import Foreign

__all__ = ["Foreign", "export_saelens", "read_foreign"]
