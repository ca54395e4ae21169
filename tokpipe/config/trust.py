"""What a caller lets an output name. Anyone may have written its record."""

from dataclasses import dataclass, field

from tokpipe.config.checkpoint import BUILTIN, WEIGHTS_KEYS
from tokpipe.config.job import JobConfig, StoreOptions
from tokpipe.config.sources import Source
from tokpipe.config.tokenizer import PROGRAMS, AnyTokenizer
from tokpipe.errors import ConfigError


@dataclass(frozen=True)
class Trust:
    """What is used besides an output itself. By default, only what comes with tokpipe."""

    weights: str | None = None  # Their URI. A separate decoder is ``decoder.jit`` in that folder
    storage: StoreOptions = field(default_factory=StoreOptions)  # To reach weights and sources
    uris: bool = False  # Open the weights and sources that the output names
    code: bool = False  # Run its tokenizer even if that is a program: a class or TorchScript
    tokenizer: AnyTokenizer | None = None  # That of the caller's own job file
    sources: tuple[Source, ...] = ()  # Those of that file, which may allow more addresses

    def job_of(self, recorded: JobConfig, uri: str) -> JobConfig:
        """Return a job that may be run, in place of what the output at ``uri`` records."""
        tokenizer = self.tokenizer or recorded.tokenizer
        if self.weights is not None:
            folder = self.weights[: self.weights.rfind("/") + 1]
            both = {"weights": self.weights, "decoder_weights": f"{folder}decoder.jit"}
            files = {key: both[key] for key in WEIGHTS_KEYS if hasattr(tokenizer, key)}
            tokenizer = tokenizer.model_copy(update=files)
        named = [getattr(tokenizer, key, None) for key in WEIGHTS_KEYS]
        foreign = [one for one in named if one is not None and not one.startswith(BUILTIN)]
        if self.tokenizer is None and not self.code and tokenizer.kind in PROGRAMS:
            problem = f"its tokenizer of kind {tokenizer.kind} is a program and was not run"
            raise _distrusted(uri, problem, "--trust-code")
        if foreign and not (self.tokenizer or self.weights or self.uris):
            problem = f"the weights that it names, {foreign[0]}, were not opened"
            raise _distrusted(uri, problem, "--trust-uris, or --weights and your own copy")
        return recorded.model_copy(update={"tokenizer": tokenizer, "storage": self.storage})

    def check_sources(self, uri: str) -> None:
        """Raise ConfigError unless the sources that the output at ``uri`` names may be opened."""
        if not self.uris:
            raise _distrusted(uri, "the sources that it names were not opened", "--trust-uris")


NO_TRUST = Trust()


def _distrusted(uri: str, problem: str, flags: str) -> ConfigError:
    return ConfigError(
        f"{uri}: {problem}. Anyone may have written this output, which could name any file, server "
        f"or program. If you trust its author, pass {flags}; if it is yours, name its job file"
    )
