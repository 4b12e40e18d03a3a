"""The crosscoder: encoder and decoder over the flat width, with the per-source scale inside."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.activation_fns.base import check_same_ranking
from crosscoders.artifact import check_weights, config_errors, read_header, read_tensors, write_artifact
from crosscoders.crosscoder.config import CrosscoderConfig
from crosscoders.crosscoder.initial import initial_directions
from crosscoders.crosscoder.output import CrosscoderOutput
from crosscoders.kernels.ops import decode, encode
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.metrics import decoder_norms
from crosscoders.parallel import ALONE, Ranks
from crosscoders.sources import (
    Source,
    check_activations,
    column_slices,
    scale_vector,
    source_index,
    width,
)
from crosscoders.structures.base import Matrix
from crosscoders.structures.hold import check_held, hold

_MATRICES: tuple[Matrix, ...] = ("W_enc", "W_dec")


@final
class Crosscoder(nn.Module):
    """A sparse dictionary over the activations of several sources, one decoder vector per latent and source.

    pre = W_enc (scale * x) + b_enc; latents = activation(pre); x_hat = (W_dec^T latents + b_dec) / scale.
    Public methods take and give raw activations, in any floating dtype; the scale of each source stays
    inside. Each latent's decoder starts as an independent random direction in each source, W_enc as its copy.
    A structure of the config holds from the start and through every step of training.

    Args:
        config: Sources, number of latents, activation function and structure.
        generator: Source of the initial directions; None for a new generator with seed 0.

    Example:
        >>> import torch
        >>> from crosscoders.activation_fns import TopK
        >>> from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
        >>> from crosscoders.sources import Source
        >>> sources = (Source(name="base", d_model=4), Source(name="distilled", d_model=4))
        >>> config = CrosscoderConfig(sources=sources, n_latents=16, activation_fn=TopK(k=2))
        >>> Crosscoder(config).reconstruct(torch.ones(3, 8)).shape
        torch.Size([3, 8])
    """

    selection_weight: Tensor
    origin: str | None = None  # "owner/name@commit" if it came from the Hub; not part of the artifact
    ranks: Ranks = ALONE  # over which its trainer spread the batch and the latents; here may be some of them

    def __init__(self, config: CrosscoderConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        directions = initial_directions(config, generator or torch.Generator().manual_seed(0))
        self.W_enc = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.n_latents))
        self.W_dec = nn.Parameter(directions)
        self.b_dec = nn.Parameter(torch.zeros(self.width))
        # Read only by a folded crosscoder; before that the norms are summed afresh.
        self.register_buffer("selection_weight", torch.zeros(config.n_latents))
        self.activation = config.activation_fn.build(config.n_latents)
        self._scale: Tensor | None = None
        if not config.is_folded:
            self.impose_structure()
        self._hold_structure()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hold_structure()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Sources in the order of their columns."""
        return self.config.sources

    @property
    def width(self) -> int:
        """Number of columns over all sources."""
        return width(self.config.sources)

    @property
    def n_latents(self) -> int:
        """Number of latents, over all ranks where a trainer spread them."""
        return self.config.n_latents

    @typed
    def normalize(self, x_raw: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Scale raw activations source by source, in the dtype of the weights.

        Args:
            x_raw: Activations as the models give them.

        Returns:
            The same times the scale of each source, also of a folded crosscoder.
        """
        return self._checked(x_raw, "normalize") * self._scale_row()

    @typed
    def denormalize(self, x_norm: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Undo `normalize`.

        Args:
            x_norm: Activations in normalized space.

        Returns:
            The same divided by the scale of each source, also of a folded crosscoder.
        """
        return self._checked(x_norm, "denormalize") / self._scale_row()

    @typed
    def pre_activations(self, x_raw: Float[Tensor, "batch width"]) -> Float[Tensor, "batch latent"]:
        """Pre-activations of raw activations; folding does not change them.

        Args:
            x_raw: Activations as the models give them.

        Returns:
            What goes into the activation function, in normalized space.
        """
        x = self._checked(x_raw, "pre_activations")
        return self._pre_activations(x if self.config.is_folded else x * self._scale_row())

    @typed
    def encode(self, x_raw: Float[Tensor, "batch width"]) -> Float[Tensor, "batch latent"] | SparseLatents:
        """Latents of raw activations, in the form that the activation function gives.

        Args:
            x_raw: Raw activations of all sources.

        Returns:
            Dense or sparse latents; `.to_dense()` of the sparse ones gives the dense form.

        Raises:
            ValueError: Wrong width, or BatchTopK in eval mode without a threshold.
        """
        return self.activation(self.pre_activations(x_raw), self.selection_scale())

    @typed
    def decode(self, latents: Float[Tensor, "batch latent"] | SparseLatents) -> Float[Tensor, "batch width"]:
        """Raw reconstruction from dense or sparse latents.

        Args:
            latents: Latents as `encode` gives them.

        Returns:
            Activations in the units of the models.
        """
        stored = self._decode(latents)
        return stored if self.config.is_folded else stored / self._scale_row()

    @typed
    def reconstruct(self, x_raw: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """`decode(encode(x_raw))`.

        Args:
            x_raw: Activations as the models give them.

        Returns:
            Their reconstruction, in the same units.
        """
        return self.decode(self.encode(x_raw))

    @typed
    def forward(self, x_raw: Float[Tensor, "batch width"]) -> CrosscoderOutput:
        """One pass over raw activations with everything that losses need, in normalized space.

        Args:
            x_raw: Activations as the models give them.

        Returns:
            Inputs, reconstruction, latents and pre-activations.
        """
        x = self._checked(x_raw, "forward")
        inputs = x * self._scale_row()
        pre_acts = self._pre_activations(x if self.config.is_folded else inputs)
        latents = self.activation(pre_acts, self.selection_scale())
        stored = self._decode(latents)
        reconstruction = stored * self._scale_row() if self.config.is_folded else stored
        return CrosscoderOutput(inputs, reconstruction, latents, pre_acts)

    @typed
    def selection_scale(self) -> Float[Tensor, " latent"]:
        """Factor by which top-k families rank: sum of decoder norms in normalized space, without gradient.

        A folded crosscoder uses the stored `selection_weight`: norms summed after folding rank otherwise.
        """
        if self.config.is_folded:
            return self.selection_weight
        return decoder_norms(self.W_dec.detach(), self.sources).sum(dim=1)

    @typed
    def decoder_norms(
        self, *, p: int = 2, space: Literal["normalized", "raw"] = "normalized"
    ) -> Float[Tensor, "latent source"]:
        """Norm of each latent's decoder vector in each source; gradients reach `W_dec`.

        Args:
            p: 1 or 2.
            space: "normalized": comparable across sources; "raw": in the units of each model's activations.

        Returns:
            One column per source, in the order of `sources`; never negative.
        """
        rows = self.W_dec
        if space == "raw" and not self.config.is_folded:
            rows = rows / self._scale_row()
        if space == "normalized" and self.config.is_folded:
            rows = rows * self._scale_row()
        return decoder_norms(rows, self.sources, p=p)

    @typed
    def decoder(self, source: str) -> Float[Tensor, "latent d_model"]:
        """The stored decoder rows of one source (normalized space, or raw if folded).

        Args:
            source: Name of the source.

        Returns:
            A view of its columns of `W_dec`.
        """
        return self.W_dec[:, self._columns(source)]

    @typed
    def encoder(self, source: str) -> Float[Tensor, "latent d_model"]:
        """The stored encoder rows of one source (normalized space, or raw if folded).

        Args:
            source: Name of the source.

        Returns:
            A view of its columns of `W_enc`.
        """
        return self.W_enc[:, self._columns(source)]

    @typed
    def steering_direction(self, latent: int, source: str) -> Float[Tensor, " d_model"]:
        """What one unit of a latent adds to a source's raw activation; detached, not of unit length.

        Args:
            latent: Index of the latent.
            source: Name of the source.

        Returns:
            The decoder vector in the raw units of that model's activations.

        Raises:
            ValueError: No such latent or source, or the latents are spread over ranks.
        """
        self._check_whole("steering_direction")
        if not 0 <= latent < self.n_latents:
            raise ValueError(f"steering_direction: latent {latent} is outside 0..{self.n_latents - 1}.")
        vector = self.decoder(source)[latent].detach()
        scale = self.sources[source_index(self.sources, source)].scale
        return vector.clone() if self.config.is_folded else vector / scale

    @typed
    def fold(self) -> "Crosscoder":
        """A new crosscoder whose weights contain the scales; latents and raw reconstructions are the same.

        The selection weight of normalized space is stored, so that top-k families select the same latents.

        Raises:
            ValueError: The latents are spread over ranks.
        """
        self._check_whole("fold")
        return self if self.config.is_folded else self._rescaled(self._scale_row(), is_folded=True)

    @typed
    def unfold(self, *, rank_by_norms: bool = False) -> "Crosscoder":
        """A new crosscoder whose weights live in normalized space again; inverts `fold`.

        Args:
            rank_by_norms: Allow it where another weight ranks, as in converted files; calibrate anew then.

        Raises:
            ValueError: Another weight ranks, so that top-k families would select other latents.
        """
        if not self.config.is_folded:
            return self
        other = self._rescaled(1 / self._scale_row(), is_folded=False)
        if not rank_by_norms:
            check_same_ranking(self.selection_weight, other.selection_scale())
        return other

    @typed
    def set_scale(self, sources: Sequence[Source]) -> None:
        """Replace the scales of the sources, for instance by those that a buffer estimated.

        Args:
            sources: The same sources, by name and width, with the new scales.

        Raises:
            ValueError: The sources differ in name, order or width, or the crosscoder is folded.
        """
        old, new = ([(s.name, s.d_model) for s in group] for group in (self.sources, sources))
        if old != new:
            raise ValueError(f"Crosscoder.set_scale: expected sources {old} (name, d_model), got {new}.")
        if self.config.is_folded:
            raise ValueError(
                "Crosscoder.set_scale: the scales are folded into the weights; call unfold() first."
            )
        self.config = dataclasses.replace(self.config, sources=tuple(sources))
        self._scale = None

    @typed
    def impose_structure(self) -> None:
        """Move the weights to the nearest ones that fulfil the config's structure; those that do stay.

        Gradients keep a structure by themselves. A trainer calls this after each step, so that it also holds
        where a step wrote weights in another way; call it after writing weights yourself.

        Raises:
            ValueError: There is a structure, which lives in normalized space, and the scales are folded.
        """
        structure = self.config.structure
        if structure is None:
            return
        if self.config.is_folded:
            raise ValueError(
                f"Crosscoder.impose_structure: {structure} holds in normalized space, but the scales are "
                "folded into the weights; call unfold() first."
            )
        for matrix in _MATRICES:
            structure.impose_(getattr(self, matrix).detach(), matrix=matrix, sources=self.sources)

    @torch.no_grad()
    @typed
    def initialize_bias(self, x_raw: Float[Tensor, "batch width"]) -> None:
        """Set `b_dec` to the mean of these activations, so that latents explain what varies.

        Args:
            x_raw: Raw activations; averaged in float64.

        Raises:
            ValueError: No rows, wrong width or non-finite values.
        """
        mean = self._checked(x_raw, "initialize_bias").mean(dim=0, dtype=torch.float64)
        if not bool(mean.isfinite().all()):
            raise ValueError(
                f"Crosscoder.initialize_bias: the mean of {x_raw.shape[0]} rows is not finite; expected "
                "at least one row, without NaN or infinity."
            )
        self.b_dec.copy_(mean if self.config.is_folded else mean * self._scale_row())

    @typed
    def save_pretrained(self, path: Path | str, *, training_summary: Mapping[str, Any] | None = None) -> None:
        """Write `config.json` and `model.safetensors` with checksums, all or nothing.

        Args:
            path: Folder to write; replaced only if this library wrote it.
            training_summary: JSON-ready facts to keep with the weights.

        Raises:
            FileExistsError: `path` holds something else.
            OSError: Writing failed; an older artifact under `path` is untouched.
            ValueError: The latents are spread over ranks.
        """
        self._check_whole("save_pretrained")
        tensors = {**self.state_dict(), "selection_weight": self.selection_scale()}
        write_artifact(path, config=self.config.to_dict(), tensors=tensors, training_summary=training_summary)

    @classmethod
    @typed
    def from_pretrained(cls, path: Path | str) -> "Crosscoder":
        """Read a folder that `save_pretrained` wrote; the crosscoder comes in eval mode.

        Args:
            path: The folder.

        Raises:
            CheckpointError: A byte changed, a file or key is missing or unknown, the format is another, or
                the weights break the structure that the config states.
        """
        header = read_header(path)
        with config_errors(path):
            config = CrosscoderConfig.from_dict(header["crosscoder"])
            stamp = check_weights(path, header, n_latents=config.n_latents, width=width(config.sources))
            crosscoder = cls(config)
        tensors = read_tensors(path, header, expected=crosscoder.state_dict(), stamp=stamp)
        check_held(path, config.structure, tensors, sources=config.sources, is_folded=config.is_folded)
        crosscoder.to(tensors["W_enc"].dtype).load_state_dict(tensors, strict=True)
        return crosscoder.eval()

    def _columns(self, source: str) -> slice:
        source_index(self.sources, source)
        return column_slices(self.sources)[source]

    def _hold_structure(self) -> None:
        structure = self.config.structure
        if structure is not None and not torch.compiler.is_compiling():
            for matrix in _MATRICES:
                hold(structure, getattr(self, matrix), matrix=matrix, sources=self.sources)

    def _pre_activations(self, x: Tensor) -> Tensor:
        self._hold_structure()  # again: a parameter may have been replaced or thawed
        return encode(x, self.W_enc, self.b_enc)

    def _decode(self, latents: Tensor | SparseLatents) -> Tensor:
        return self.ranks.sum_over_latents(decode(latents, self.W_dec)) + self.b_dec

    def _check_whole(self, method: str) -> None:
        if self.ranks.latents.size > 1:
            raise ValueError(
                f"Crosscoder.{method}: this rank holds {len(self.W_dec)} of {self.n_latents} latents; call "
                "trainer.whole_crosscoder() on all ranks together, and this method of what it gives."
            )

    def _scale_row(self) -> Tensor:
        weight = self.W_enc
        if self._scale is None or self._scale.dtype != weight.dtype or self._scale.device != weight.device:
            self._scale = scale_vector(self.sources, dtype=weight.dtype, device=weight.device)
        return self._scale

    def _checked(self, x: Tensor, method: str) -> Tensor:
        return check_activations(x, self.sources, where=f"Crosscoder.{method}").to(self.W_enc.dtype)

    @torch.no_grad()
    def _rescaled(self, factor: Tensor, *, is_folded: bool) -> "Crosscoder":
        other = Crosscoder(dataclasses.replace(self.config, is_folded=is_folded)).to(self.W_enc)
        other.load_state_dict(self.state_dict(), strict=True)
        other.W_enc.mul_(factor)
        other.W_dec.div_(factor)
        other.b_dec.div_(factor)
        other.selection_weight.copy_(self.selection_scale())
        if not is_folded:
            other.impose_structure()  # takes back what rounding did
        return other.train(self.training)
