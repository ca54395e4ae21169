"""Training: losses through the codes, initial weights, optimizer steps, checkpoints and the log."""

import contextlib
import io
import json
import logging
import math
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from examples.train_tokenizer.config import LossConfig, TrainConfig
from examples.train_tokenizer.data import TrainingData
from tokpipe.config.base import RECORDED
from tokpipe.config.checkpoint import CONFIG_NAME, WEIGHTS_NAME
from tokpipe.config.explain import validate_settings
from tokpipe.errors import ConfigError
from tokpipe.models import FSQ, Quantized
from tokpipe.models.spatial_norm import SpatialNorm3D
from tokpipe.models.tokenizers.native import NativeTokenizer, fill_uniform, hashed_seed, randomize
from tokpipe.storage.local_files import write_file
from tokpipe.telemetry.usage import CodeUsage
from tokpipe.weights.checkpoint import load_checkpoint

_log = logging.getLogger(__name__)

STATE_NAME = "training.pt"
LOG_NAME = "log.jsonl"
TOKENIZER_FOLDER = "tokenizer"


class Trainer:
    """Weights, their moving average, the optimizer and the number of steps done.

    Nothing else is carried from step to step: random numbers depend only on the seed and the step.
    So a run that was stopped and continued has the same losses as one that was not.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        has_gpu = torch.cuda.is_available()
        if config.device == "cuda" and not has_gpu:
            raise ConfigError("device: cuda, but torch finds no GPU here: write cpu or auto")
        self.device = torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")
        self.tokenizer = NativeTokenizer(config.tokenizer, with_decoder=True).float()
        randomize(self.tokenizer, config.tokenizer.seed)
        initialize(self.tokenizer, config.seed)
        self.tokenizer.to(self.device).train()
        self.average = {key: value.clone() for key, value in self.tokenizer.state_dict().items()}
        named = list(self.tokenizer.named_parameters())
        groups = [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas)
        self.step = 0

    def train_step(self, pixels: Tensor) -> dict[str, float | Tensor]:
        """Do one step on (B, T, H, W, 3) uint8 pixels; return the loss terms and the codes.

        Raises:
            FloatingPointError: the loss or a gradient is not finite. No weight has changed.
        """
        config = self.config
        phase, learning_rate = config.phase_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        x = scaled(pixels.to(self.device, non_blocking=True))
        narrow = config.dtype == "bfloat16"
        gpus = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(gpus),
            torch.autocast(self.device.type, torch.bfloat16, enabled=narrow),
        ):
            # Random numbers in quantizers and dropout depend on the step too.
            torch.manual_seed(hashed_seed(config.seed, self.step))
            terms, quantized = losses(self.tokenizer, x, phase.loss or config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.tokenizer.parameters(), config.clip_norm)
        measured = {name: float(term.detach()) for name, term in terms.items()}
        if not norm.isfinite():
            raise FloatingPointError(
                f"step {self.step}: loss {measured['loss']}, gradient norm {float(norm)}. Another "
                "step would ruin the weights. Lower learning_rate or lengthen the warmup, and "
                "continue from the last checkpoint"
            )
        self.optimizer.step()
        self._update_average()
        self.step += 1
        measured |= {"gradient_norm": float(norm), "learning_rate": learning_rate}
        return {**measured, "codes": quantized.codes.detach(), "frames": x.shape[2]}

    @torch.no_grad()
    def _update_average(self) -> None:
        # After n early steps the average spans about n / 10 of them: initial weights fade soon.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for key, value in self.tokenizer.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    def state(self) -> dict[str, Any]:
        """Return everything that a later run needs to continue."""
        return {
            "step": self.step,
            "config": self.config.model_dump_json(),
            "weights": self.tokenizer.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any], source: str) -> None:
        """Continue from a state that was read from ``source``."""
        try:
            theirs = json.loads(state["config"])
            before = validate_settings(TrainConfig, theirs, name=source, context=RECORDED)
            _check_same_run(before, self.config, state["step"], source)
            self.tokenizer.load_state_dict(state["average"])  # only to compare shapes
            self.tokenizer.load_state_dict(state["weights"])
            self.average = {key: state["average"][key].to(v) for key, v in self.average.items()}
            self.optimizer.load_state_dict(state["optimizer"])
            moments = [(one, self.optimizer.state[one]) for one in self.optimizer.state]
            counts = state["step"], state.get("log_bytes", 0)
            if min(counts) < 0 or any(one.shape != m["exp_avg"].shape for one, m in moments):
                raise ValueError("its step or its optimizer is that of another model")
            self.step = state["step"]
        except ConfigError:
            raise
        except Exception as error:  # torch raises anything for values of other types
            found = f"{source} is not the state of a training run ({type(error).__name__}: "
            do = "It cannot be continued: restore the file, or choose another output"
            raise ConfigError(f"{found}{' '.join(str(error).split())[:200]}). {do}") from error


def train(config: TrainConfig, stop: threading.Event | None = None) -> Path | None:
    """Train to the last step, starting from the last checkpoint if there is one.

    Args:
        stop: once set, the run is saved after the current step and ends.

    Returns:
        The folder of the trained tokenizer, or None if the run was stopped before its last step.

    Raises:
        ConfigError: the output belongs to a run with different settings or other rows, or a source
            cannot be used.
        FloatingPointError: the loss is no longer finite.
        StorageError, RuntimeFault: videos cannot be read or decoded, through no fault of theirs.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    for path in [output / name for name in (LOG_NAME, STATE_NAME, TOKENIZER_FOLDER)]:
        if path.is_symlink():  # in somebody else's folder
            found = f"{path} is a link, so training would write where no setting says"
            raise ConfigError(f"{found}. Remove the link, or choose another output")
    data, trainer = TrainingData(config), Trainer(config)
    rows, state_path, log_bytes = data.digest(), output / STATE_NAME, 0
    if state_path.exists():
        state = load_checkpoint(state_path)
        trainer.load(state, str(state_path))
        if state.get("rows") != rows:
            raise ConfigError(
                f"{state_path}: the sources list different rows than when this run began. "
                "Continuing would train on clips that no seed describes. Choose another output, or "
                "restore the sources"
            )
        log_bytes = state.get("log_bytes", sys.maxsize)  # older runs did not record it
        _log.info("continuing from step %d of %d", trainer.step, config.num_steps)
    log = _Log(output / LOG_NAME, log_bytes, config)

    def save() -> None:
        buffer = io.BytesIO()
        kept = {"rows": rows, "log_bytes": log.path.stat().st_size}
        torch.save({**trainer.state(), **kept}, buffer)
        write_file(state_path, buffer.getvalue())
        save_tokenizer(config, trainer.average, output / TOKENIZER_FOLDER)

    saved_s = time.monotonic()
    with contextlib.closing(data.batches(trainer.step)) as batches:
        while trainer.step < config.num_steps and not (stop and stop.is_set()):
            log.add(trainer.step, trainer.train_step(next(batches)))
            if time.monotonic() - saved_s >= config.checkpoint_every_s:
                save()
                saved_s = time.monotonic()
    save()
    return output / TOKENIZER_FOLDER if trainer.step == config.num_steps else None


def save_tokenizer(config: TrainConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Write a checkpoint folder: ``config.yaml`` and ``model.safetensors``."""
    dtype = getattr(torch, config.weights_dtype)
    stored = {
        key: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for key, value in weights.items()
    }
    section = config.tokenizer.model_dump(mode="json", exclude_unset=True)
    section = {"kind": config.tokenizer.kind, **section, "weights": WEIGHTS_NAME}
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS_NAME, safetensors.torch.save(stored))
    text = yaml.safe_dump(section, sort_keys=False)
    write_file(folder / CONFIG_NAME, text.encode())


class _Log:
    """Appends a line of JSON every few steps, with means over the steps since the last line."""

    def __init__(self, path: Path, size_bytes: int, config: TrainConfig) -> None:
        self.path, self.config = path, config
        with path.open("ab") as file:  # drop the lines of steps that a kill undid
            file.truncate(min(file.tell(), size_bytes))
        self._start()

    def _start(self) -> None:
        self.sums: Counter[str] = Counter()
        self.count = 0
        self.usage = CodeUsage(self.config.tokenizer.quantizer.num_codes)
        self.started_s = time.monotonic()

    def add(self, step: int, measured: dict[str, Any]) -> None:
        self.usage.update(measured.pop("codes"))
        self.sums.update(measured)
        self.count += 1
        if (step + 1) % self.config.log_every_steps and step + 1 != self.config.num_steps:
            return
        mse = self.sums["mse"] / self.count
        line = {
            "step": step + 1,
            **{name: round(value / self.count, 6) for name, value in self.sums.items()},
            # Pixels span [-1, 1], so the largest squared error is 4.
            "psnr_db": round(10 * math.log10(4 / max(mse, 1e-10)), 3),
            "codes_used": self.usage.num_used,
            "code_entropy_bits": round(self.usage.entropy_bits, 3),
            "seconds_per_step": round((time.monotonic() - self.started_s) / self.count, 3),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        _log.info("%s", line)
        self._start()


def _check_same_run(before: TrainConfig, now: TrainConfig, step: int, source: str) -> None:
    may_change = {
        *("output", "phases", "loss", "data_threads", "storage"),
        *("checkpoint_every_s", "log_every_steps", "weights_dtype"),
    }
    old, new = (run.model_dump(mode="json", exclude=may_change) for run in (before, now))
    changed = [
        f"{key}: {old[key]!r} -> {new[key]!r}" for key in sorted(new) if old[key] != new[key]
    ]

    def settings(run: TrainConfig, step: int) -> tuple[Any, ...]:
        phase, learning_rate = run.phase_at(step)
        return phase.size, phase.batches, phase.loss or run.loss, learning_rate

    steps = range(step)
    if step > now.num_steps or any(settings(before, one) != settings(now, one) for one in steps):
        changed.append(f"phases: of the {step} finished steps")
    if changed:
        raise ConfigError(
            f"{source} belongs to a run with different settings ({'; '.join(changed)}). Continuing "
            "it would produce weights that no training file describes. Choose another output, or "
            "restore the settings; phases may change from the next step on"
        )


def scaled(pixels: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 -> (B, 3, T, H, W) float32 in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).movedim(-1, 1)


def reconstruct(tokenizer: NativeTokenizer, x: Tensor) -> tuple[Tensor, Quantized, Tensor]:
    """(B, 3, T, H, W) in [-1, 1] -> the reconstruction, the quantizer's output, the latent."""
    latent = tokenizer.latent_of(x)
    with torch.autocast(x.device.type, enabled=False):
        quantized: Quantized = tokenizer.quantizer(latent.float())
    y = tokenizer.frames_of(quantized.vectors)
    return y.float(), quantized, latent.float()


def losses(
    tokenizer: NativeTokenizer, x: Tensor, weights: LossConfig
) -> tuple[dict[str, Tensor], Quantized]:
    """Return ``mse``, each other term that has a weight, and ``loss``, the weighted sum of all."""
    y, quantized, latent = reconstruct(tokenizer, x)
    error = y - x
    terms = {"mse": error.square().mean()}
    if weights.l1:
        terms["l1"] = error.abs().mean()
    if weights.gradient:
        across, down = error.diff(dim=-1), error.diff(dim=-2)
        terms["gradient"] = across.abs().mean() + down.abs().mean()
    if weights.quantizer and quantized.loss is not None:
        terms["quantizer"] = quantized.loss
    if weights.guide:
        wanted = guide(x, tokenizer.traits.temporal_stride, tokenizer.traits.spatial_stride)
        shared = min(wanted.shape[1], latent.shape[1])
        terms["guide"] = F.mse_loss(latent[:, :shared], wanted[:, :shared])
    if weights.saturation:
        # FSQ hardly squashes latents up to 1.5: with 8 levels, the last begins at 1.14 and the
        # first ends at -1.42.
        terms["saturation"] = F.relu(latent.abs() - 1.5).square().mean()
    if weights.spread:
        assert isinstance(tokenizer.quantizer, FSQ)
        terms["spread"] = spread(tokenizer.quantizer.bounded(latent), tokenizer.quantizer.levels)
    if weights.rounding:
        assert isinstance(tokenizer.quantizer, FSQ)
        bounded = tokenizer.quantizer.bounded(latent)
        terms["rounding"] = (bounded - bounded.detach().round()).square().mean()
    weighted = [getattr(weights, name) * term for name, term in terms.items()]
    terms["loss"] = torch.stack(weighted).sum()
    return terms, quantized


def spread(bounded: Tensor, levels: Tensor) -> Tensor:
    """Compute how far channels are from equal and independent use of their levels; 0 is best.

    Args:
        bounded: (B, z, t, h, w) latents before rounding, in levels.
        levels: (z,) number of levels of each channel.
    """
    # Channels as (n, z), with their levels evenly over [-1, 1].
    channels = (bounded.movedim(1, -1).flatten(0, -2) + (levels % 2 == 0) / 2) / (levels / 2)
    equal = torch.linspace(-1, 1, len(channels), device=bounded.device)[:, None]
    # The outermost levels begin well before the values that saturate.
    reachable = math.tanh(1.6) * (levels - 1) / levels
    uneven = (channels.sort(0).values - equal.clamp(-reachable, reachable)).square().mean()
    centred = F.normalize(channels - channels.mean(0), dim=0)
    return uneven + (centred.T @ centred).triu(1).square().sum() / len(levels)


def guide(x: Tensor, temporal_stride: int, spatial_stride: int) -> Tensor:
    """Compute cosine coefficients of each latent's block of pixels, averaged over its frames.

    (B, 3, T, H, W) in [-1, 1] -> (B, 8, t, h, w) in about [-1.5, 1.5]: mean and both slopes of the
    brightness, then both colour differences, then the brightness's diagonal and both curvatures.
    """
    first, rest = x[:, :, :1], x[:, :, 1:]
    rest = rest.unflatten(2, (-1, temporal_stride)).mean(3)
    blocks = torch.cat([first, rest], 2)
    blocks = blocks.unflatten(4, (-1, spatial_stride)).unflatten(3, (-1, spatial_stride))
    red, green, blue = blocks.unbind(1)  # (B, t, h, s, w, s)
    light = 0.3 * red + 0.6 * green + 0.1 * blue
    place = (torch.arange(spatial_stride, device=x.device) + 0.5) * math.pi / spatial_stride
    waves = [torch.cos(order * place) for order in range(3)]

    def coefficient(values: Tensor, down: int, across: int, gain: float) -> Tensor:
        wave = waves[down][:, None, None] * waves[across]
        return (gain * (values * wave).mean((3, 5))).tanh() * 1.5

    # Each gain gives its coefficient a standard deviation of about 0.7 in natural images.
    wanted = (
        *((light, 0, 0, 1.2), (light, 0, 1, 11.0), (light, 1, 0, 11.0)),
        *((blue - light, 0, 0, 3.0), (red - light, 0, 0, 5.0)),
        *((light, 1, 1, 28.0), (light, 0, 2, 22.0), (light, 2, 0, 22.0)),
    )
    return torch.stack([coefficient(*one) for one in wanted], 1)


def initialize(tokenizer: NativeTokenizer, seed: int) -> None:
    """Set every parameter to its initial value, which depends on ``seed`` and its key.

    Convolutions preserve the variance of their input. Residual blocks start as the identity and
    the decoder's norms close to plain ones, so that deep stacks learn from the first step.
    """
    for key, parameter in tokenizer.named_parameters():
        if key.endswith("bias") or key.startswith("quantizer."):
            continue
        if parameter.ndim > 1:
            fill_uniform(parameter, 1 / math.sqrt(math.prod(parameter.shape[1:])), seed, key)
    for key, module in tokenizer.named_modules():
        if isinstance(module, SpatialNorm3D):
            module.conv_y.conv.weight.data.mul_(0.3)
            module.conv_b.conv.weight.data.mul_(0.3)
            assert module.conv_y.conv.bias is not None
            nn.init.ones_(module.conv_y.conv.bias)
        if key.endswith(".conv2"):
            nn.init.zeros_(module.conv.weight)
