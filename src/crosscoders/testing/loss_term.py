"""The check of a loss term: its spec, its value and its gradients."""

import copy
import dataclasses
import json
import re
from typing import Any

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.activation_fns.jumprelu import JumpReLU
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig, CrosscoderOutput
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    DifferenceReconstruction,
    JumpReLUL0,
    LossContext,
    LossTerm,
    PreActivation,
    Reconstruction,
    SharedDecoderNormL1,
    TanhSparsity,
    compute_losses,
)
from crosscoders.sources import Source
from crosscoders.testing.requirement import copies, dense, has_gradient, require, same_bits

_SHIPPED = (
    AuxK,
    DecoderNormL1,
    DifferenceReconstruction,
    JumpReLUL0,
    PreActivation,
    Reconstruction,
    SharedDecoderNormL1,
    TanhSparsity,
)
_N_ROWS = 24
# Two sums over the same numbers in another order; values and gradients are compared in float64.
_RTOL = 1e-9
_PROGRESS = (0.3, 1.0, 0.3)
_SILENCING_BIAS = -1e3  # far below every pre-activation of rows of order 1


@typed
def check_loss_term(
    term: LossTerm,
    *,
    crosscoder: Crosscoder | None = None,
    is_order_free: bool = True,
    is_token_mean: bool = True,
) -> None:
    """Check what the library relies on in a loss term.

    The spec: a frozen dataclass that survives JSON, whose `repr` tells it from others (checkpoints compare
    it), with a name of its own that can be a key; a weight schedule that is a pure function. The value: a
    finite scalar in the dtype of the weights, in float32 and float64, also for one token, where no latent
    fires and where none or all are dead; the same for dense and sparse latents (or a ValueError that says
    that it needs dense ones); the same each time, and nothing else changed by it. The gradient: reaches a
    parameter with weight 1 and none with weight 0, is finite, also where no latent fires, and is the same for
    both forms of latents.

    Args:
        term: The term to check.
        crosscoder: One with the sources and the activation function that the term needs; it stays as it is.
            None: a small one with JumpReLU over sources "base" and "distilled" of different widths.
        is_order_free: Whether the value does not depend on the order of the tokens.
        is_token_mean: Whether the value is a mean over tokens, so that a batch given twice has the same.

    Raises:
        AssertionError: A property fails.
    """
    _check_name(term)
    _check_spec(term)
    _check_schedule(term)
    original = _small_crosscoder() if crosscoder is None else crosscoder
    for dtype in (torch.float32, torch.float64):
        of_dtype = copy.deepcopy(original).to(dtype).train()
        _check_values(term, of_dtype)
    _check_no_side_effects(term, of_dtype)
    _check_gradients(term, of_dtype)
    _check_forms(term, of_dtype)
    _check_tokens(term, of_dtype, is_order_free=is_order_free, is_token_mean=is_token_mean)


def _small_crosscoder() -> Crosscoder:
    sources = (Source(name="base", d_model=6, scale=0.5), Source(name="distilled", d_model=4, scale=2.0))
    config = CrosscoderConfig(sources=sources, n_latents=32, activation_fn=JumpReLU(), decoder_init_norm=0.5)
    return Crosscoder(config)


def _check_name(term: LossTerm) -> None:
    name = type(term).name
    is_key = isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None
    require(is_key, f"name {name!r} is no key: lower-case letters, digits and underscores, a letter first")
    taken = [cls.__name__ for cls in _SHIPPED if cls.name == name and cls is not type(term)]
    require(not taken, f"name {name!r} is taken by {taken}")


def _check_spec(term: LossTerm) -> None:
    extra = sorted(set(vars(term)) - {field.name for field in dataclasses.fields(term)})
    require(
        not extra,
        f"the attributes {extra} are no fields; decorate with @dataclass(frozen=True, kw_only=True)",
    )
    fields = dataclasses.asdict(term)
    try:
        data = json.loads(json.dumps(fields, allow_nan=False))
    except (TypeError, ValueError) as err:
        raise AssertionError(f"the fields {fields} cannot be written as JSON: {err}") from err
    again = type(term)(**{name: _like(getattr(term, name), value) for name, value in data.items()})
    require(again == term, "the spec does not survive a JSON round trip")
    require(repr(again) == repr(term), f"repr differs between equal terms: {term!r}, {again!r}")
    unsaid = [name for name in fields if f"{name}=" not in repr(term)]
    require(not unsaid, f"repr does not tell {unsaid}; a resumed run could not see that they changed")


def _like(original: Any, value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    if isinstance(original, tuple | list) and isinstance(value, list):
        return type(original)(_like(o, v) for o, v in zip(original, value))
    return value


def _check_schedule(term: LossTerm) -> None:
    weights = [term.weight_at(progress) for progress in _PROGRESS]
    require(weights[0] == weights[2], "weight_at depends on what was asked before")
    for progress in (0.0, *_PROGRESS):
        weight = term.weight_at(progress)
        is_usable = isinstance(weight, int | float) and 0 <= weight < float("inf")
        require(is_usable, f"weight_at({progress}) is {weight}; expected a finite number, not negative")
    off = [dataclasses.replace(term, weight=0.0).weight_at(progress) for progress in _PROGRESS]
    require(not any(off), f"weight_at gives {off} for a term of weight 0")


def _rows(crosscoder: Crosscoder, *, n_rows: int = _N_ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_rows, crosscoder.width, generator=generator, dtype=torch.float64)
    weight = crosscoder.W_enc
    return crosscoder.denormalize(x.to(device=weight.device, dtype=weight.dtype)).detach()


def _context(
    crosscoder: Crosscoder, *, dead: slice = slice(None, None, 2), progress: float = 1.0
) -> LossContext:
    mask = torch.zeros(crosscoder.n_latents, dtype=torch.bool, device=crosscoder.W_enc.device)
    mask[dead] = True
    return LossContext(progress=progress, step=3, dead_mask=mask)


def _silent(crosscoder: Crosscoder) -> CrosscoderOutput:
    """A pass in which no latent fires."""
    output = crosscoder(_rows(crosscoder))
    latents = torch.zeros_like(output.pre_acts)
    return CrosscoderOutput(
        output.inputs, crosscoder.b_dec.expand_as(output.inputs), latents, -output.pre_acts.abs()
    )


def _check_values(term: LossTerm, crosscoder: Crosscoder) -> None:
    output = crosscoder(_rows(crosscoder))
    cases = {
        "a batch": (output, _context(crosscoder)),
        "no dead latent": (output, _context(crosscoder, dead=slice(0))),
        "all latents dead": (output, _context(crosscoder, dead=slice(None))),
        "the start of the run": (output, _context(crosscoder, progress=0.0)),
        "one token": (crosscoder(_rows(crosscoder, n_rows=1)), _context(crosscoder)),
        "latents that do not fire": (_silent(crosscoder), _context(crosscoder)),
    }
    dtype = crosscoder.W_enc.dtype
    for case, (given, context) in cases.items():
        value = term.value(given, crosscoder, context)
        is_scalar = isinstance(value, Tensor) and value.shape == ()
        require(is_scalar, f"the value of {case} is no scalar tensor: {value}")
        require(
            value.dtype == dtype, f"the value of {case} has dtype {value.dtype}, the weights have {dtype}"
        )
        require(bool(value.isfinite()), f"the value of {case} is not finite: {value}")


def _value(
    term: LossTerm, output: CrosscoderOutput, crosscoder: Crosscoder, *, progress: float = 1.0
) -> Tensor:
    return term.value(output, crosscoder, _context(crosscoder, progress=progress)).detach()


def _check_no_side_effects(term: LossTerm, crosscoder: Crosscoder) -> None:
    output, context = crosscoder.train()(_rows(crosscoder)), _context(crosscoder)
    seen = {
        "inputs": output.inputs,
        "reconstruction": output.reconstruction,
        "latents": dense(output.latents),
        "pre_acts": output.pre_acts,
        "dead_mask": context.dead_mask,
    }
    if isinstance(output.latents, SparseLatents):
        seen["latents"] = output.latents.values
    before, weights = copies(seen), copies(crosscoder.state_dict())
    modes = [(module.training, module) for module in crosscoder.modules()]
    term.value(output, crosscoder, context)
    changed = [name for name in seen if not torch.equal(seen[name], before[name])]
    require(not changed, f"value changes the {changed} of the forward pass")
    require(same_bits(weights, crosscoder.state_dict()), "value changes the weights of the crosscoder")
    flags = [parameter.requires_grad and parameter.grad is None for parameter in crosscoder.parameters()]
    is_kept = all(flags) and all(module.training == mode for mode, module in modes)
    require(is_kept, "value changes the mode or the gradients of the crosscoder")
    values = [_value(term, output, crosscoder, progress=progress) for progress in _PROGRESS]
    require(torch.equal(values[0], values[2]), "the value depends on what was computed before")


def _gradients(term: LossTerm, output: CrosscoderOutput, crosscoder: Crosscoder) -> dict[str, Tensor]:
    """Gradient of the weighted term, where there is one, by parameter."""
    crosscoder.zero_grad(set_to_none=True)
    losses = compute_losses([term], output, crosscoder=crosscoder, context=_context(crosscoder))
    require(losses.total.requires_grad, "the value has no gradient")
    losses.total.backward()
    found = {n: p.grad for n, p in crosscoder.named_parameters() if p.grad is not None and has_gradient(p)}
    crosscoder.zero_grad(set_to_none=True)
    return found


def _check_gradients(term: LossTerm, crosscoder: Crosscoder) -> None:
    x = _rows(crosscoder)
    on = _gradients(dataclasses.replace(term, weight=1.0), crosscoder(x), crosscoder)
    require(bool(on), "no gradient reaches a parameter though the weight is 1")
    quiet = copy.deepcopy(crosscoder)
    with torch.no_grad():
        quiet.b_enc.fill_(_SILENCING_BIAS)
    silent = _gradients(dataclasses.replace(term, weight=1.0), quiet(x), quiet)
    for gradients, where in ((on, "in a batch"), (silent, "where no latent fires")):
        bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
        require(not bad, f"the gradient of {bad} is not finite {where}")
    off = _gradients(dataclasses.replace(term, weight=0.0), crosscoder(x), crosscoder)
    require(not off, f"a gradient reaches {sorted(off)} though the weight is 0")


def _with_latents(output: CrosscoderOutput, latents: Tensor | SparseLatents) -> CrosscoderOutput:
    return dataclasses.replace(output, latents=latents)


def _check_forms(term: LossTerm, crosscoder: Crosscoder) -> None:
    """Dense and sparse latents give one value and one gradient."""
    one = dataclasses.replace(term, weight=1.0)
    x, found = _rows(crosscoder), []
    for is_sparse in (False, True):
        output = crosscoder(x)
        latents = dense(output.latents)
        output = _with_latents(output, SparseLatents.from_dense(latents) if is_sparse else latents)
        try:
            value = _value(one, output, crosscoder)
        except ValueError as err:
            says_so = is_sparse and "dense" in str(err)
            require(says_so, f"the term refuses latents without saying that it needs dense ones: {err}")
            return
        gradients = _gradients(one, output, crosscoder)
        # Straight-through estimates reach an activation function's parameters through zeros, which sparse
        # latents do not store.
        found.append({"value": value, **{k: v for k, v in gradients.items() if "activation." not in k}})
    for name in found[0].keys() | found[1].keys():
        same = name in found[0] and name in found[1] and _close(found[0][name], found[1][name])
        what = "value" if name == "value" else f"gradient of {name}"
        require(same, f"dense and sparse latents give another {what}")


def _check_tokens(
    term: LossTerm, crosscoder: Crosscoder, *, is_order_free: bool, is_token_mean: bool
) -> None:
    output = crosscoder(_rows(crosscoder))
    n = output.inputs.shape[0]
    value = _value(term, output, crosscoder)
    if is_order_free:
        turned = _value(term, _take(output, torch.arange(n).flip(0)), crosscoder)
        require(
            _close(turned, value), f"the order of tokens changes the value: {float(value)}, {float(turned)}"
        )
    if is_token_mean:
        twice = _value(term, _take(output, torch.arange(n).repeat(2)), crosscoder)
        require(
            _close(twice, value),
            f"the value is no mean over tokens: {float(value)}, and for the same batch twice {float(twice)}",
        )


def _take(output: CrosscoderOutput, rows: Tensor) -> CrosscoderOutput:
    """The pass of these rows, in this order, latents in the form in which they were."""
    rows = rows.to(output.inputs.device)
    latents = dense(output.latents)[rows]
    return CrosscoderOutput(
        output.inputs[rows],
        output.reconstruction[rows],
        SparseLatents.from_dense(latents) if isinstance(output.latents, SparseLatents) else latents,
        output.pre_acts[rows],
    )


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=_RTOL, atol=_RTOL * float(b.abs().max()))
