"""Arguments of published classes: shown, and accepted where they have no effect."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, TypeVar, cast

Call = TypeVar("Call", bound=Callable[..., Any])

ENCODER_ONLY = ("in_channels", "double_z")
DECODER_ONLY = ("out_ch", "give_pre_end", "tanh_out", "zq_ch", "add_conv", "post_quant_conv")
"""What the config that an encoder and its decoder share has for one of them."""


def takes(
    *dead: str, as_well_as: Callable[..., Any] | None = None, **neutral: Sequence[Any]
) -> Callable[[Call], Call]:
    """A decorator: accept arguments that published code swallows or has no other value for.

    ``dead`` ones may have any value, since they concern parts that do not exist here; ``neutral``
    ones a value, or one of a type, that asks for nothing else, or there is a ValueError. With
    ``as_well_as``, the signature shows its arguments and these in place of ``**``.
    """

    def decorate(call: Call) -> Call:
        @wraps(call)
        def accepting(*args: Any, **given: Any) -> Any:
            for name, values in neutral.items():
                value = given.get(name, values[0])
                if value not in values and type(value) not in values:
                    raise ValueError(
                        f"{name}={value!r}: there is nothing of the kind here, where published "
                        f"code may ignore it without a word: leave it out, or pass {values[0]!r}"
                    )
            return call(*args, **{k: v for k, v in given.items() if k not in (*dead, *neutral)})

        if as_well_as is not None:
            own = {k: v for k, v in signature(call).parameters.items() if v.kind != v.VAR_KEYWORD}
            more = [v for k, v in signature(as_well_as).parameters.items() if k not in own]
            more += [Parameter(k, Parameter.KEYWORD_ONLY, default=None) for k in (*dead, *neutral)]
            accepting.__signature__ = Signature([*own.values(), *more])  # type: ignore[attr-defined]
        return cast(Call, accepting)

    return decorate
