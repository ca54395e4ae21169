"""Encoder classes: which hardware an output's clips are encoded on, and which may join it."""

from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import Limits


class EncoderClasses:
    """The classes that an output names, and those of this run's encoders."""

    def __init__(self, limits: Limits, out: Outbox) -> None:
        self._admits_one = limits.hardware == "same"
        self._known = set(limits.encoders)
        self._out = out

    def misfit(self, found: str | None) -> str | None:
        """Take in the class of an encoder that came up; return why it must not encode, if so."""
        if found is None:
            return None
        others = "; ".join(sorted(self._known - {found}))
        if others and self._admits_one:
            return f"encode.hardware is same: it has {found}, and this output {others}"
        if others and found not in self._known:
            text = (
                f"{found} joins this output, which has clips encoded on {others}. About one code "
                "in a thousand may differ between them in bfloat16. To admit one class of "
                "hardware, set encode.hardware to same"
            )
            self._out.note("encoder_class_joined", text, is_warning=True, encoder=found)
        self._known.add(found)
        return None
