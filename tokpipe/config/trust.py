"""What the caller of a verb allows an output's record to name: anyone may have written it."""

from collections.abc import Callable
from dataclasses import dataclass

from tokpipe.config.checkpoint import BUILTIN
from tokpipe.config.job import JobConfig, StoreOptions
from tokpipe.config.tokenizer import PROGRAMS, AnyTokenizer, CosmosDVConfig
from tokpipe.errors import ConfigError

_BECAUSE = "Anyone may have written this output"
_OWN = "If the job is yours, name its job file instead of the output"


@dataclass(frozen=True)
class Trust:
    """What may be used besides the output itself. By default, only what comes with tokpipe."""

    weights: str | None = None
    """URI of the tokenizer's weights, in place of the recorded one. A decoder that is a file by
    itself is ``decoder.jit`` in the same folder."""
    storage: StoreOptions | None = None
    """How to reach weights and sources. What the output records is never used."""
    uris: bool = False
    """Open the weights and sources that the output names, wherever they are."""
    code: bool = False
    """Run its tokenizer even if that is a program: a custom class, or TorchScript."""
    own_job: Callable[[], JobConfig] | None = None
    """Reads the caller's own job file. Its tokenizer, storage options and sources are used."""

    def job_of(self, recorded: JobConfig, uri: str) -> JobConfig:
        """Return what an output at ``uri`` records, with what is trusted in place of the rest."""
        tokenizer, storage = recorded.tokenizer, self.storage or StoreOptions()
        if self.own_job is not None:
            own = self.own_job()
            storage = self.storage or own.storage
            if own.tokenizer.codes_settings() != tokenizer.codes_settings():
                raise ConfigError(
                    f"{uri}: was made by another tokenizer than its job file describes, so its "
                    "codes mean something else. Restore the job file, or name the output instead"
                )
            tokenizer = own.tokenizer
        elif tokenizer.kind in PROGRAMS and not self.code:
            raise ConfigError(
                f"{uri}: its tokenizer is a program ({PROGRAMS[tokenizer.kind]}), which was not "
                f"run. {_BECAUSE}: pass --trust-code if you would run its author's programs. {_OWN}"
            )
        if self.weights is not None:
            changes = {"weights": self.weights}
            if isinstance(tokenizer, CosmosDVConfig):
                changes["decoder_weights"] = f"{self.weights.rpartition('/')[0]}/decoder.jit"
            tokenizer = tokenizer.model_copy(update=changes)
        elif self.own_job is None and not self.uris:
            self._check_weights(tokenizer, uri)
        return recorded.model_copy(update={"tokenizer": tokenizer, "storage": storage})

    def check_sources(self, uri: str) -> None:
        """Raise ConfigError unless the sources that an output names may be opened."""
        if not self.uris and self.own_job is None:
            raise ConfigError(
                f"{uri}: its sources were not opened. {_BECAUSE}, and it could name any file or "
                f"server: pass --trust-uris if you trust its author. {_OWN}"
            )

    def _check_weights(self, tokenizer: AnyTokenizer, uri: str) -> None:
        named = [tokenizer.weights, getattr(tokenizer, "decoder_weights", None)]
        for weights in named:
            if weights is not None and not weights.startswith(BUILTIN):
                raise ConfigError(
                    f"{uri}: the weights that it names, {weights}, were not opened. {_BECAUSE}, "
                    "and it could name any file or server: pass the place of your copy as "
                    f"--weights, or --trust-uris if you trust its author. {_OWN}"
                )
