"""Crosscoders on the Hub: pull, push, read by name, and files of other libraries.

`huggingface_hub` is imported only when a repository is named.
"""

from crosscoders.hub.convert import convert
from crosscoders.hub.load import from_pretrained
from crosscoders.hub.publish import push_to_hub
from crosscoders.hub.scale import estimate_scale
from crosscoders.hub.snapshots import pull

__all__ = ["convert", "estimate_scale", "from_pretrained", "pull", "push_to_hub"]
