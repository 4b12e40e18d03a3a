"""The check of adapters accepts those that the library ships and sees what is broken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from crosscoders.models import LanguageModel
from crosscoders.models.adapters import Adapter, Generic, Qwen2, Qwen3, base
from crosscoders.models.adapters.qwen import qwen2_parameters
from crosscoders.models.hooks import StopForward
from crosscoders.testing import check_adapter
from tests.data.toy_models import toy_gpt2, toy_model
from tests.training.check_messages import error_of, never_raised


def test_shipped_adapters_conform() -> None:
    check_adapter(Qwen2(), toy_model())
    check_adapter(Generic(), toy_gpt2())


def test_the_model_is_left_as_it_was() -> None:
    model = toy_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_adapter(Qwen2(), model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not [hook for module in model.modules() for hook in module._forward_hooks]


@dataclass(frozen=True, kw_only=True)
class Marked(Adapter):
    """A sound adapter of models whose config is marked with its family."""

    family: ClassVar[str] = "marked_sound"

    @classmethod
    def recognize(cls, config: Any, *, model_id: str = "", tokenizer: Any = None) -> tuple[str, ...]:
        mark = config.get("mark") if isinstance(config, Mapping) else getattr(config, "mark", None)
        return ("the config is marked", "and so was it meant") if mark == cls.family else ()

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        return qwen2_parameters(config)

    def rms_norms(self, config: Any) -> tuple[str, ...]:
        return ("input_layernorm",)


def marked_model(cls: type[Adapter]) -> Qwen2ForCausalLM:
    model = toy_model()
    model.config.mark = cls.family
    return model


class OnlyModules(Marked):
    family: ClassVar[str] = "marked_only_modules"
    model_types: ClassVar[tuple[str, ...]] = ("marked_only_modules",)

    @classmethod
    def recognize(cls, config: Any, *, model_id: str = "", tokenizer: Any = None) -> tuple[str, ...]:
        return () if isinstance(config, Mapping) else super().recognize(config)


class Greedy(Marked):
    family: ClassVar[str] = "marked_greedy"
    model_types: ClassVar[tuple[str, ...]] = ("marked_greedy",)

    @classmethod
    def recognize(cls, config: Any, *, model_id: str = "", tokenizer: Any = None) -> tuple[str, ...]:
        is_other = isinstance(config, Mapping) and config.get("model_type") == "another_architecture"
        return ("anything goes",) if is_other else super().recognize(config)


class OtherTable(Marked):
    family: ClassVar[str] = "marked_other_table"
    model_types: ClassVar[tuple[str, ...]] = ("marked_other_table",)

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        return {} if isinstance(config, Mapping) else qwen2_parameters(config)


class Careless(Marked):
    family: ClassVar[str] = "marked_careless"
    model_types: ClassVar[tuple[str, ...]] = ("marked_careless",)

    def check(self, model: LanguageModel) -> None:
        """Look at nothing."""


class Wrong(Marked):
    family: ClassVar[str] = "marked_wrong"
    model_types: ClassVar[tuple[str, ...]] = ("marked_wrong",)

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        return qwen2_parameters(config) | {"surplus": (1,)}


# Defining them registered them; other tests are spared that.
REGISTERED = {cls.family: base._registry.pop(cls.family) for cls in (Marked, *Marked.__subclasses__())}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for family, cls in REGISTERED.items():
        monkeypatch.setitem(base._registry, family, cls)


BROKEN: list[tuple[type[Adapter], str]] = [
    (OnlyModules, "by config.json alone the adapter is Qwen2"),
    (Greedy, "Greedy claims another architecture"),
    (OtherTable, "layer_parameters differ"),
    (Careless, "check accepts a layer with a parameter too many"),
    (Wrong, "check refuses the model"),
]


def test_the_sound_adapter_conforms() -> None:
    check_adapter(Marked(), marked_model(Marked))


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_broken_adapters_are_seen(cls: type[Adapter], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_adapter(cls(), marked_model(cls))


def test_another_familys_adapter_is_seen() -> None:
    with pytest.raises(AssertionError, match="the adapter found for the model is Qwen2, not Qwen3"):
        check_adapter(Qwen3(), toy_model())


class Noisy(Qwen2DecoderLayer):
    """Returns more at every call."""

    n_calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.n_calls += 1
        return super().forward(*args, **kwargs) + self.n_calls


class Counting(Qwen2DecoderLayer):
    """Counts its calls in a buffer."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.n_calls = self.get_buffer("n_calls").add_(1)
        return super().forward(*args, **kwargs)


class Hooking(Qwen2DecoderLayer):
    """Attaches a hook at every call."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.register_forward_hook(lambda layer, args, output: None)
        return super().forward(*args, **kwargs)


class Swallowing(Qwen2DecoderLayer):
    """Hides what goes wrong in it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return super().__call__(*args, **kwargs)
        except StopForward:
            raise
        except Exception:
            return args[0]


class Scarred(Qwen2DecoderLayer):
    """Computes something else once something went wrong in it."""

    scar = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return super().__call__(*args, **kwargs) + self.scar
        except StopForward:
            raise
        except Exception:
            self.scar = 1.0
            raise


class Head(nn.Linear):
    """An unembedding that looks for edits of the layer at half depth."""

    n_calls = 0
    n_edited = 0

    def is_edited(self) -> bool:
        return bool(self.layer[0]._forward_pre_hooks)


class NoisyHead(Head):
    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        return super().forward(x) + self.n_calls


class BlindHead(Head):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0 * x)


class WatchingHead(Head):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.is_edited()


class ResentfulHead(Head):
    def forward(self, x: Tensor) -> Tensor:
        self.n_edited += self.is_edited()
        return super().forward(x) + (self.n_edited >= 2 and not self.is_edited())


def broken_model(cls: type[nn.Module]) -> Qwen2ForCausalLM:
    """The toy model with one of its modules made one of this class."""
    model = toy_model()
    layer = model.model.layers[0]
    if issubclass(cls, Head):
        model.lm_head.__class__ = cls
        model.lm_head.layer = (model.model.layers[1],)
    else:
        layer.__class__ = cls
    if cls is Counting:
        layer.register_buffer("n_calls", torch.zeros(()))
    return model


BROKEN_MODELS: list[tuple[type[nn.Module], str]] = [
    (Noisy, "is not Hugging Face's hidden state"),
    (Counting, "validate_model leaves other weights"),
    (Hooking, "leaves hooks or training flags behind"),
    (NoisyHead, "the same tokens give other logits the second time"),
    (WatchingHead, "an edit that returns what it got changes the logits"),
    (BlindHead, "an edit at half depth does not reach the logits"),
    (ResentfulHead, "an edit leaves the model changed"),
    (Swallowing, "an exception inside an edit does not arrive"),
    (Scarred, "an exception leaves the model changed"),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN_MODELS, ids=[cls.__name__ for cls, _ in BROKEN_MODELS])
def test_broken_models_are_seen(cls: type[nn.Module], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_adapter(Qwen2(), broken_model(cls))


def test_each_message_of_the_check_has_something_that_earns_it() -> None:
    calls: list[Callable[[], Any]] = [lambda: check_adapter(Qwen3(), toy_model())]
    calls += [lambda cls=cls: check_adapter(cls(), marked_model(cls)) for cls, _ in BROKEN]
    calls += [lambda cls=cls: check_adapter(Qwen2(), broken_model(cls)) for cls, _ in BROKEN_MODELS]
    assert never_raised(check_adapter, [error_of(call) for call in calls]) == []
