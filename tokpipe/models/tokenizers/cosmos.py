"""NVIDIA's Cosmos discrete tokenizers of videos and images, from published TorchScript files."""

import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.config.tokenizer import CosmosDVConfig
from tokpipe.errors import ConfigError
from tokpipe.models.tokenizers.base import VideoTokenizer
from tokpipe.models.tokenizers.probe import probe


class CosmosDVTokenizer(VideoTokenizer):
    """``encoder.jit`` and, to decode, ``decoder.jit``: programs with weights, run as published.

    The encoder takes (B, 3, T, H, W) in [-1, 1] and returns (indices int32 (B, t, h, w), code
    vectors, loss); the decoder takes indices and returns pixels. Those of images have no T and t.
    The programs accept any size and drop what does not fit, so the size rules are enforced here.
    Published in bfloat16; ``compute_in`` casts the whole program and probes it, since some cannot
    be cast. Source: github.com/NVIDIA/Cosmos-Tokenizer, ``video_lib.py`` and ``image_lib.py``.
    """

    def __init__(
        self,
        config: CosmosDVConfig,
        weights: bytes,
        *,
        with_decoder: bool,
        decoder_weights: bytes | None,
    ) -> None:
        super().__init__(config.traits)
        # The fuser rounds first calls differently (pytorch#74534). Cosmos' code turns it off, too.
        torch._C._jit_set_texpr_fuser_enabled(False)
        self.decoder: nn.Module | None = None
        if with_decoder:
            where = "tokenizer.decoder_weights"
            if decoder_weights is None:
                found = f"{where}: missing. Cosmos keeps its decoder in a separate file"
                raise ConfigError(f"{found}: name its decoder.jit")
            self.decoder = _load(decoder_weights, f"{where} {config.decoder_weights}")
        self.what = f"tokenizer.weights {config.weights} as {config.name} {config.variant}"
        self.encoder: nn.Module = _load(weights, f"tokenizer.weights {config.weights}")
        types = (p.dtype for p in self.encoder.parameters() if p.is_floating_point())
        self.file_dtype = next(types, torch.float32)
        self._proven: torch.dtype | None = None
        self.eval()
        try:
            self._prove_in(torch.float32)
        except ConfigError as error:
            # Outputs that are wrong in float32 are wrong in any type. But programs traced in
            # bfloat16 may need it, in steps that CPUs lack: ``compute_in`` probes them.
            is_wrong = isinstance(error.__cause__, TypeError | ValueError)
            if self.file_dtype == torch.float32 or is_wrong:
                raise
            self.dtype = self.file_dtype
            self.to(self.dtype)

    def _encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)[0]

    def _decode(self, codes: Tensor) -> Tensor:
        return self._needed(self.decoder)(codes.int())

    def _cast(self, dtype: torch.dtype) -> None:
        if dtype == self._proven:
            return
        try:
            self._prove_in(dtype)
        except ConfigError as error:
            raise ConfigError(
                f"encode.dtype: {error}. Set encode.dtype to that of its file, {self.file_dtype}"
            ) from error

    def _prove_in(self, dtype: torch.dtype) -> None:
        """Convert the program, and probe it on its device."""
        self.dtype = dtype
        self.to(dtype)
        device = next((p.device for p in self.encoder.parameters()), None)
        probe(self, self.what, with_decoder=self.decoder is not None, device=device)
        self._proven = dtype


def _load(data: bytes, where: str) -> Any:
    try:
        with warnings.catch_warnings():
            # PyTorch deprecates TorchScript, but these files are published in it.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            return torch.jit.load(io.BytesIO(data), map_location="cpu")
    except RuntimeError as error:
        raise ConfigError(
            f"{where}: not a TorchScript file, a program with its weights, that PyTorch "
            f"{torch.__version__} can load ({str(error).strip()[:400]}). Name the .jit file of the "
            "checkpoint, copy it again if it was cut short, or use the PyTorch that wrote it"
        ) from error
