"""What decides an engine's output beside the model itself, and how it is filled in."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from bertray.errors import ConfigError
from bertray.model.backend import Device, Dtype
from bertray.model.bundle import Bundle
from bertray.model.families import ACTIVATIONS, ONNX_FAMILIES, activation_of
from bertray.model.packed import takes_onnx
from bertray.model.pretrained import load_tokenizer, num_positions, read_config
from bertray.text.long import TRUNCATE, LongText, check_long_text

BackendName = Literal["torch", "onnx"]

# Where the matrix multiplications of an encoder are near their best rate and padding is small; on a
# CPU also where what goes between them stays in a core's cache.
DEFAULT_BATCH_TOKENS: dict[Device, int] = {"cpu": 512, "cuda": 65_536}


@dataclass(frozen=True)
class EngineSettings:
    """All that decides an engine's output, beside the model itself. Small, plain and picklable.

    Attributes:
        max_length: tokens a row is cut to.
        device: where the model runs.
        dtype: number type of the forward pass.
        max_batch_tokens: rows x longest row of one forward pass; a longer row goes alone.
        backend: what computes it.
        long_text: what becomes of longer texts.
        calibrated: whether the bundle's calibration is applied, if it has one.
        abstain_below: the least probability of a label that is given; None for any. The engine
            gives probabilities all the same, but those near it must be exact.
    """

    max_length: int
    device: Device
    dtype: Dtype
    max_batch_tokens: int
    backend: BackendName = "torch"
    long_text: LongText = TRUNCATE
    calibrated: bool = True
    abstain_below: float | None = None


def resolve_settings(
    bundle: Bundle,
    *,
    device: Device,
    max_length: int | None = None,
    dtype: str = "auto",
    max_batch_tokens: int | None = None,
    backend: str = "auto",
    long_text: LongText | None = None,
    has_pairs: bool = False,
) -> EngineSettings:
    """Fill in what was left to us: from the model, the device class and what is installed here.

    To be called once, on the driver. The result travels, so all workers compute the same.

    Args:
        bundle: the model.
        device: where it will run.
        max_length: tokens a row is cut to; what the bundle says by default.
        dtype: ``auto`` is float16 on CUDA and float32 on CPUs. See `verify_int8` for int8.
        max_batch_tokens: rows x longest row of a forward pass.
        backend: ``auto`` is ONNX Runtime on CPUs if it is installed and takes the model.
        long_text: what becomes of longer texts; what the bundle says by default.
        has_pairs: whether rows are pairs of texts.

    Raises:
        ConfigError: the model cannot take so long rows or long texts so, or the backend not this
            model, device or number type.
    """
    config = read_config(bundle.folder, source=bundle.source, key="model.path")
    most = num_positions(config)
    if max_length is not None and most is not None and max_length > most:
        raise ConfigError(f"model.max_length={max_length}: {bundle.source} takes {most} at most")
    given, max_length = max_length, max_length or bundle.max_length
    long_text = long_text or bundle.long_text
    if long_text.long != "truncate" or given is not None:
        tokenizer = load_tokenizer(bundle.folder)
        check_long_text(long_text, tokenizer, max_length=max_length, has_pairs=has_pairs)
    if dtype == "auto":
        dtype = "float16" if device == "cuda" else "float32"
    fits_onnx = device == "cpu" and dtype in ("float32", "int8") and takes_onnx(config)
    if backend == "auto":
        installed = all(find_spec(name) is not None for name in ("onnx", "onnxruntime"))
        wanted = dtype == "int8" or (fits_onnx and installed)
        backend = "onnx" if wanted else "torch"
    if backend == "onnx" and not fits_onnx:
        instead = "set model.backend=torch" + " and model.dtype=float32" * (dtype == "int8")
        raise ConfigError(
            f"model.backend=onnx, model.dtype={dtype}: ONNX Runtime computes float32 or int8, on "
            f"CPUs, for encoders of {', '.join(sorted(ONNX_FAMILIES))} with "
            f"{', '.join(sorted(ACTIVATIONS))}; {bundle.source} is {config.model_type}"
            f"{' as a decoder' if getattr(config, 'is_decoder', False) else ''} with "
            f"{activation_of(config)} and the device {device}; {instead}"
        )
    if backend == "torch" and dtype == "int8":
        raise ConfigError("model.dtype=int8 needs ONNX Runtime; set model.backend=onnx")
    return EngineSettings(
        max_length=max_length,
        device=device,
        dtype=dtype,  # type: ignore[arg-type]
        max_batch_tokens=max_batch_tokens or DEFAULT_BATCH_TOKENS[device],
        backend=backend,  # type: ignore[arg-type]
        long_text=long_text,
    )
