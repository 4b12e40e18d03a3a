"""`Speed`: what a device does by its data sheet, and which part of that a plan assumes to be reached."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a device does at best, and which part of it is assumed to be reached.

    Args:
        name: What it is called in texts.
        bfloat16: Matrix products in bfloat16, operations per second, without sparsity.
        float32: Matrix products in float32, TF32 not used, which is torch's default.
        bandwidth: Of its memory, bytes per second.
        memory: Bytes.
        source: Where the numbers come from.
        harvest_share: Part of the peak that reading models reaches; assumed.
        product_share: Part of the peak that the products of a training step reach; assumed.
        bandwidth_share: Part of the bandwidth that the rest of a step reaches; assumed.
        transfer: From CPU memory to the device, bytes per second; assumed.
        harvest_rate: Tokens per second that the run's models together read, if measured.
        training_rate: Tokens per second that the run trains on, if measured.

    Raises:
        ValueError: A number that is not positive.
    """

    name: str
    bfloat16: float
    float32: float
    bandwidth: float
    memory: int
    source: str
    harvest_share: float = 0.4
    product_share: float = 0.6
    bandwidth_share: float = 0.75
    transfer: float = 20e9
    harvest_rate: float | None = None
    training_rate: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"Speed: {field.name} must be positive, got {value}.")


_SHEET = "the vendor's data sheet, dense"
SPEEDS: dict[str, Speed] = {
    "h200": Speed(
        name="H200 SXM", bfloat16=989e12, float32=67e12, bandwidth=4.8e12, memory=141 * 10**9, source=_SHEET
    ),
    "h100": Speed(
        name="H100 SXM", bfloat16=989e12, float32=67e12, bandwidth=3.35e12, memory=80 * 10**9, source=_SHEET
    ),
    "a100": Speed(
        name="A100 SXM 80GB",
        bfloat16=312e12,
        float32=19.5e12,
        bandwidth=2.039e12,
        memory=80 * 10**9,
        source=_SHEET,
    ),
    "rtx4090": Speed(
        name="RTX 4090",
        bfloat16=165e12,
        float32=82.6e12,
        bandwidth=1.008e12,
        memory=24 * 10**9,
        source=_SHEET,
    ),
}
