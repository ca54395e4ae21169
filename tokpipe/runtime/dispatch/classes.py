"""Encoder classes: which hardware an output's clips are encoded on, and which may join it."""

from typing import Literal

from tokpipe.runtime.dispatch.outbox import Outbox


class EncoderClasses:
    """The classes of an output: those that its shards name, then those of this run's encoders."""

    def __init__(self, admits: Literal["any", "same"], known: frozenset[str], out: Outbox) -> None:
        self._admits = admits
        self._known = set(known)
        self._out = out

    def misfit(self, found: str) -> str | None:
        """Take in the class of an encoder that came up; return why it must not encode, if so."""
        others = "; ".join(sorted(self._known - {found}))
        if others and self._admits == "same":
            return (
                f"its encoder class is {found}, but clips of this output are encoded on {others}, "
                "and encode.hardware is same"
            )
        if found not in self._known:
            self._known.add(found)
            if others:
                text = (
                    f"this output is encoded on more than one class of hardware: {found} joins "
                    f"{others}. About one code in a thousand may differ between them in bfloat16. "
                    "Shards name the class of each clip; encode.hardware: same admits only one"
                )
                self._out.note("encoder_class_joined", text, is_warning=True, encoder=found)
        return None
