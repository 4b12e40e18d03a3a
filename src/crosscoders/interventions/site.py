"""One place of one model's stream that hooks share: the clean activation in, the sum of their edits out."""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from crosscoders.interventions.codes import CodeReader, latent_columns
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.models.base import LanguageModel
from crosscoders.models.hooks import ResidualHook, parse_residual_hook


class SiteForward:
    """One forward's clean activation at a site, its codes, and what the hooks there ask for.

    Args:
        activation: [batch pos d_model], before any hook of the site.
    """

    def __init__(self, activation: Tensor) -> None:
        self.activation = activation
        self._latents: dict[int, Tensor | SparseLatents] = {}
        self._replaced: list[tuple[CodeReader, Tensor | None]] = []

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of what is added: float32, or wider where the model is."""
        return torch.promote_types(self.activation.dtype, torch.float32)

    def latents(self, reader: CodeReader) -> Tensor | SparseLatents:
        """A reader's latents, computed at the first call.

        Args:
            reader: One that the site gave out.
        """
        if id(reader) not in self._latents:
            self._latents[id(reader)] = reader.latents(self.activation)
        return self._latents[id(reader)]

    def columns(self, reader: CodeReader, chosen: Tensor) -> Tensor:
        """[batch pos chosen] activations of some latents.

        Args:
            reader: One that the site gave out.
            chosen: Indices of the latents, each once.
        """
        latents = self.latents(reader)
        device = latents.values.device if isinstance(latents, SparseLatents) else latents.device
        found = latent_columns(latents, chosen.to(device)).unflatten(0, self.activation.shape[:2])
        return found.to(device=self.activation.device, dtype=self.dtype)

    def drop_error(self, reader: CodeReader, where: Tensor | None) -> None:
        """Ask for the reconstruction in place of the activation, before edits; asking twice drops it once.

        Args:
            reader: Whose reconstruction.
            where: Positions [batch pos]; None is all.
        """
        self._replaced.append((reader, where))

    def dropped_error(self) -> Tensor | None:
        """[batch pos d_model] reconstruction less activation where that was asked for, or None."""
        if not self._replaced:
            return None
        reader = self._replaced[0][0]
        reconstruction = reader.reconstruction(self.latents(reader)).to(self.activation.device, self.dtype)
        error = reconstruction.view(self.activation.shape) - self.activation
        masks = [where for _, where in self._replaced if where is not None]
        if len(masks) < len(self._replaced):
            return error
        return error.where(torch.stack(masks).any(dim=0)[:, :, None], 0.0)


Part = Callable[[SiteForward], Tensor]


class EditSite:
    """The hooks that are active at one place; each gives what it adds to the stream, from what was clean."""

    def __init__(self) -> None:
        self.n_users = 0
        self._parts: list[Part] = []
        self._readers: dict[tuple, tuple[CodeReader, ExitStack, list[None]]] = {}
        self._replacing: list[CodeReader] = []

    def apply(self, activation: Tensor) -> Tensor:
        """The stream with every hook's addition.

        Args:
            activation: [batch pos d_model].
        """
        if not self._parts:
            return activation
        forward = SiteForward(activation)
        deltas = [part(forward) for part in self._parts]
        error = forward.dropped_error()
        total = sum(deltas[1:], deltas[0]) if error is None else sum(deltas, error)
        return (activation + total).to(activation.dtype)

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Let a hook take part while the block runs.

        Args:
            part: Gives what it adds, in a shape that broadcasts to the activation's.
        """
        self._parts.append(part)
        try:
            yield
        finally:
            self._parts.remove(part)

    @contextmanager
    def reader(self, own: CodeReader, target: LanguageModel) -> Iterator[CodeReader]:
        """The reader that serves everyone here who reads the same codes, while the block runs.

        Args:
            own: What the hook would read with; a copy of the first of equal ones serves all.
            target: The model that is edited.

        Yields:
            The reader to use.
        """
        if own.key not in self._readers:
            stack, shared = ExitStack(), copy.copy(own)  # a hook may be at several sites at once
            stack.enter_context(shared.on(target))
            self._readers[own.key] = (shared, stack, [])
        reader, stack, users = self._readers[own.key]
        users.append(None)
        try:
            yield reader
        finally:
            users.pop()
            if not users:
                del self._readers[own.key]
                stack.close()

    @contextmanager
    def replacing(self, reader: CodeReader) -> Iterator[None]:
        """Hold the place for full replacement by one reader's reconstruction.

        Args:
            reader: Whose reconstruction.

        Raises:
            ValueError: Another reader's reconstruction already replaces the activation here.
        """
        if any(other is not reader for other in self._replacing):
            raise ValueError(
                f"two hooks with keep_error=False at {reader.source.hook_name!r} replace the activation by "
                "different reconstructions; give them the same crosscoder, source, codes and models, or let "
                "one keep the error."
            )
        self._replacing.append(reader)
        try:
            yield
        finally:
            self._replacing.remove(reader)


_sites: weakref.WeakKeyDictionary[nn.Module, dict[ResidualHook | None, tuple[EditSite, ExitStack]]] = (
    weakref.WeakKeyDictionary()
)


@contextmanager
def edit_site(model: LanguageModel, hook_name: str) -> Iterator[EditSite]:
    """The site of a model and hook while the block runs; it exists as long as any block holds it.

    Hooks entered through different wrappers of one Hugging Face module meet at the same site. Edits made with
    `LanguageModel.edit` are no part of it: they act before or after the whole site, in the order entered.

    Args:
        model: The model.
        hook_name: Residual-stream hook, or "half".

    Yields:
        The site.

    Raises:
        ValueError: The hook does not exist or is none of the residual stream.
    """
    place = parse_residual_hook(model.resolve_hook(hook_name))
    if place not in _sites.get(model.causal_lm, {}):
        site, stack = EditSite(), ExitStack()
        stack.enter_context(model.edit(hook_name, site.apply))
        _sites.setdefault(model.causal_lm, {})[place] = (site, stack)
    site, stack = _sites[model.causal_lm][place]
    site.n_users += 1
    try:
        yield site
    finally:
        site.n_users -= 1
        if site.n_users == 0:
            del _sites[model.causal_lm][place]
            if not _sites[model.causal_lm]:
                del _sites[model.causal_lm]
            stack.close()
