"""One name for one device, and whether harvesting has devices of its own."""

from crosscoders._typing import typed
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.model_config import check_device_name


@typed
def device_name(device: str) -> str:
    """One name for one device: "cuda" is "cuda:0".

    Args:
        device: A torch device.
    """
    named = check_device_name(device, where="plan")
    return "cuda:0" if str(named) == "cuda" else str(named)


@typed
def is_overlapped(config: RunConfig) -> bool:
    """Whether harvest and training really happen at once; two jobs on one device gain little.

    Args:
        config: Its devices and `system.overlap`.
    """
    own = {device_name(model.device or config.device) for model in config.models().values()}
    return config.system.overlap != "none" and device_name(config.device) not in own
