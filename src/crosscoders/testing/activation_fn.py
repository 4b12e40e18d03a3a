"""The check of an activation function: its spec and the module that it builds."""

import json

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.activation_fns.base import ActivationFn, ActivationModule, activation_fn_from_dict
from crosscoders.kernels.ops import batch_topk_indices, row_topk_indices
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.testing.requirement import copies, dense, has_gradient, require, same_bits

_N_ROWS = 24


@typed
def check_activation_fn(
    activation_fn: ActivationFn, *, n_latents: int = 32, compile_backend: str | None = "eager"
) -> None:
    """Check what the library relies on in an activation function.

    JSON round trip; shape, dtype, device and sign of the latents, also where none fires; what `forward` is
    given stays as it is; order of sparse entries; gradients to pre-activations and own parameters;
    `set_progress` a pure function; `selection`, if given, what `forward` does; eval mode deterministic and
    independent of the batch; state-dict round trip; works under torch.compile.

    Args:
        activation_fn: The spec to check.
        n_latents: Number of latents to build it for.
        compile_backend: Backend for torch.compile; None skips that check, which takes seconds.

    Raises:
        AssertionError: A property fails.
    """
    _check_spec(activation_fn)
    for dtype in (torch.float32, torch.float64):
        module, pre_acts = activation_fn.build(n_latents).to(dtype), _pre_acts(n_latents, dtype=dtype)
        scale = torch.linspace(0.5, 2.0, n_latents, dtype=dtype)
        for x in (pre_acts, -pre_acts.abs()):
            _check_output(activation_fn, module.train(), pre_acts=x, scale=scale)
        _check_gradients(module, pre_acts=pre_acts, scale=scale)
        _check_progress(module, pre_acts=pre_acts, scale=scale)
        _check_selection(module, pre_acts=pre_acts, scale=scale)
        _check_inference(module, pre_acts=pre_acts, scale=scale)
        fresh = activation_fn.build(n_latents).to(dtype).eval()
        fresh.load_state_dict(module.state_dict(), strict=True)
        same = torch.equal(dense(fresh(pre_acts, scale)), dense(module(pre_acts, scale)))
        require(same, "a module with the same state dict gives other latents")
    if compile_backend is not None:
        compiled = torch.compile(module, backend=compile_backend)
        same = torch.equal(dense(compiled(pre_acts, scale)), dense(module(pre_acts, scale)))
        require(same, "the compiled module gives other latents")


def _check_spec(activation_fn: ActivationFn) -> None:
    try:
        again = activation_fn_from_dict(json.loads(json.dumps(activation_fn.to_dict(), allow_nan=False)))
    except (TypeError, ValueError) as err:
        raise AssertionError(f"the spec does not survive a JSON round trip: {err}") from err
    require(again == activation_fn, f"the spec does not survive a JSON round trip: it is {again} then")
    require(hash(activation_fn) == hash(again), "equal specs hash differently")


def _pre_acts(n_latents: int, *, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_N_ROWS, n_latents, generator=generator, dtype=dtype)


def _check_output(
    activation_fn: ActivationFn, module: ActivationModule, *, pre_acts: Tensor, scale: Tensor
) -> None:
    output = _of_unchanged(module, pre_acts, scale)
    if isinstance(output, SparseLatents):
        _check_order(output)
    latents = dense(output)
    require(latents.shape == pre_acts.shape, f"latents have shape {latents.shape}, expected {pre_acts.shape}")
    require(latents.dtype == pre_acts.dtype, f"latents have dtype {latents.dtype}, not {pre_acts.dtype}")
    require(
        latents.device == pre_acts.device, f"latents are on device {latents.device}, not {pre_acts.device}"
    )
    require(bool(latents.isfinite().all()), "latents are not finite")
    if activation_fn.is_nonnegative:
        require(
            bool((latents >= 0).all()), "latents are negative; if that is meant, set is_nonnegative = False"
        )


def _of_unchanged(module: ActivationModule, pre_acts: Tensor, scale: Tensor) -> Tensor | SparseLatents:
    """What forward gives; loss terms read the pre-activations after it."""
    given = {"pre_acts": pre_acts, "scale": scale}
    before = copies(given)
    output = module(pre_acts, scale)
    require(same_bits(before, given), "forward changes the pre-activations or the scale that it is given")
    return output


def _check_order(latents: SparseLatents) -> None:
    flat = latents.rows() * latents.n_latents + latents.indices
    require(
        bool((flat.diff() > 0).all()),
        "sparse entries are not in order: indices must ascend within each row, without repeats",
    )


def _check_gradients(module: ActivationModule, *, pre_acts: Tensor, scale: Tensor) -> None:
    leaf = pre_acts.clone().requires_grad_()
    energy = dense(module(leaf, scale)).square().sum()
    if energy.requires_grad:
        energy.backward()
    require(has_gradient(leaf), "no gradient reaches the pre-activations")
    for name, parameter in module.named_parameters():
        require(has_gradient(parameter), f"no gradient reaches the parameter {name!r}")


def _check_progress(module: ActivationModule, *, pre_acts: Tensor, scale: Tensor) -> None:
    results = []
    for fraction in (0.3, 1.0, 0.3):
        module.set_progress(fraction)
        results.append(dense(module(pre_acts, scale)))
    require(torch.equal(results[0], results[2]), "set_progress depends on what was set before")
    module.set_progress(1.0)


def _check_selection(module: ActivationModule, *, pre_acts: Tensor, scale: Tensor) -> None:
    """A trainer may select by `selection` and call `track` instead of `forward`; both must do the same."""
    selection = module.selection
    if selection is None:
        return
    scores = pre_acts * scale
    select = row_topk_indices if selection.per_row else batch_topk_indices
    expected = SparseLatents.gather(pre_acts, select(scores, selection.k)).to_dense()
    before, told = copies(module.state_dict()), []
    vars(module)["track"] = lambda smallest_score: told.append(float(smallest_score))
    try:
        got = dense(module(pre_acts, scale))
    finally:
        del vars(module)["track"]
    require(torch.equal(got, expected), "forward does not keep what its selection says, unchanged")
    require(
        same_bits(before, module.state_dict()), "forward of a selection changes state besides calling track"
    )
    smallest = float(scores[expected != 0].min())
    is_optional = type(module).track is ActivationModule.track
    require(
        told == [smallest] or (is_optional and not told),
        f"forward of a selection calls track with {told}, expected [{smallest}], the smallest selected score",
    )


def _check_inference(module: ActivationModule, *, pre_acts: Tensor, scale: Tensor) -> None:
    if module.needs_calibration:
        module.calibrate(torch.stack([module.calibration_score(pre_acts, scale)]))
    module.eval()
    state = copies(module.state_dict())
    whole = dense(_of_unchanged(module, pre_acts, scale))
    alone = torch.cat([dense(module(row[None], scale)) for row in pre_acts])
    require(torch.equal(whole, alone), "in eval mode a token's latents depend on the rest of the batch")
    require(same_bits(state, copies(module.state_dict())), "inference changes the module's state")
