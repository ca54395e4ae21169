"""Arguments of published networks: who takes which, and what the others do with them."""

from collections.abc import Callable, Sequence
from inspect import Signature, signature
from typing import Any, TypeVar

Init = TypeVar("Init", bound=Callable[..., None])

DECODER_ONLY = ("give_pre_end", "tanh_out", "zq_ch", "add_conv", "post_quant_conv")
"""What the config that an encoder shares with its decoder has for the decoder."""

CLIPS_ONLY = ("pad_mode", "temporal_compress_times", "gather_norm")
"""What configs of 3D networks have in addition."""


def live(given: dict[str, Any], *dead: str, **neutral: Sequence[Any]) -> dict[str, Any]:
    """The arguments that matter, of those that published code accepts.

    It swallows whatever it does not use. Here the ``dead`` ones, which concern parts that do not
    exist, may have any value, and ``neutral`` ones those values that ask for nothing else.

    Raises:
        ValueError: another value of a neutral argument.
    """
    for name, values in neutral.items():
        if given.get(name, values[0]) not in values:
            raise ValueError(
                f"{name}={given[name]!r}: there is nothing of the kind here, where published code "
                f"may ignore it without a word: leave it out, or pass {values[0]!r}"
            )
    return {key: value for key, value in given.items() if key not in (*dead, *neutral)}


def nothing() -> None:
    """Called with what ``live`` leaves over, raises a TypeError that names it."""


def passes_on_to(other: Callable[..., Any]) -> Callable[[Init], Init]:
    """In the signature of a constructor, show the arguments of ``other`` in place of ``**``."""

    def shown(init: Init) -> Init:
        own = {k: v for k, v in signature(init).parameters.items() if v.kind != v.VAR_KEYWORD}
        more = [v for k, v in signature(other).parameters.items() if k not in own]
        init.__signature__ = Signature([*own.values(), *more])  # type: ignore[attr-defined]
        return init

    return shown
