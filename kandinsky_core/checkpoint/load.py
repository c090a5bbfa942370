"""Bring weights from a file into a network without a second copy of them in memory.

The network is built on the meta device, and each tensor of the file is put in its place as it
is read. On the CPU in the file's own dtype the weights are the file itself, memory-mapped; with
a dtype or a device there is one copy, made tensor by tensor. Scaled fp8 is unpacked so, and GGUF
where a dtype is asked for; without one its matrices stay packed, see `weights/packed_layers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..family.config import DiTConfig, ImageVAEConfig, VideoVAEConfig
from ..models import CrossDiT, ImageVAE, PackedOps, TorchOps, VideoVAE
from ..models.vae.keys import to_diffusers_key, to_diffusers_shape
from ..text import NanoTextEncoder, load_nano_text_encoder
from ..weights import Component, PackedWeight, WeightFiles, packed_names
from .identification import identify, strip_prefix
from .info import CheckpointInfo

_Network = TypeVar("_Network", bound=nn.Module)
Shape = tuple[int, ...]


class Checkpoint(WeightFiles):
    """The weights of one part of a model by name without the file's prefix, and what it is."""

    def __init__(
        self,
        info: CheckpointInfo,
        device: torch.device | str = "cpu",
        *,
        keep_scales: bool = False,
    ) -> None:
        """Take what `identify` found; no file is opened yet.

        Args:
            info: What the checkpoint is.
            device: Where tensors are put.
            keep_scales: See `WeightFiles`.
        """
        tensors = strip_prefix(info.header.tensors, info.prefix)
        super().__init__(info.path, tensors, device=device, keep_scales=keep_scales)
        self.info = info


def open_checkpoint(
    path: str | Path | CheckpointInfo,
    *,
    component: Component | None = None,
    device: torch.device | str = "cpu",
    keep_scales: bool = False,
) -> Checkpoint:
    """Identify a checkpoint and give its tensors by name.

    Args:
        path: A .safetensors or .gguf file, an index of shards, or a folder (Diffusers' too); or
            what `identify` said of it, and its header is not read again.
        component: The part wanted, where there are several.
        device: Where tensors are put.
        keep_scales: See `WeightFiles`.

    Returns:
        A mapping from names without prefix to tensors, with the findings in `info`.

    Raises:
        CheckpointError: See `identify`.
    """
    return Checkpoint(_identified(path, component), device, keep_scales=keep_scales)


def load_transformer(
    path: str | Path | CheckpointInfo,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = None,
) -> tuple[CrossDiT, CheckpointInfo]:
    """Load a transformer for inference.

    Args:
        path: A .safetensors or .gguf file, an index of shards, or a folder (Diffusers' too); or
            what `identify` said of it.
        dtype: Storage dtype of the weights; None keeps the file's. Of GGUF that leaves matrices
            packed, and gives the rest of it and scaled fp8 one dtype: bf16 unless GGUF is not
            quantised.
        device: Where the weights go; "meta" checks names and shapes and reads nothing.
        ops: Layer factory, see `models/ops.py`; None takes torch's layers.

    Returns:
        The network in evaluation mode without gradients, and what the file is.

    Raises:
        CheckpointError: The file cannot be used, or its tensors are not exactly the network's.
    """
    checkpoint = open_checkpoint(path, component="transformer")
    config = checkpoint.info.config
    assert isinstance(config, DiTConfig)
    with checkpoint:
        network = CrossDiT(
            config, ops=ops or (PackedOps if dtype is None else TorchOps), device="meta"
        )
        return assign_weights(network, checkpoint, dtype=dtype, device=device), checkpoint.info


def load_vae(
    path: str | Path | CheckpointInfo,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = nn,
) -> VideoVAE | ImageVAE:
    """Load an autoencoder for inference: HunyuanVideo's, FLUX's or nano's.

    Args:
        path: A .safetensors file in Diffusers' or the original layout, or a folder; or what
            `identify` said of it.
        dtype: Storage dtype of the weights; None keeps the file's.
        device: Where the weights go.
        ops: Layer factory.

    Returns:
        The network in evaluation mode without gradients.

    Raises:
        CheckpointError: The file cannot be used, or its tensors are not exactly the network's.
    """
    checkpoint = open_checkpoint(path, component="vae")
    config = checkpoint.info.config
    layout = checkpoint.info.family.vae_layout
    assert layout is not None

    def to_ours(name: str, shape: Shape) -> tuple[str, Shape]:
        name = to_diffusers_key(name, layout.num_stages)
        return name, to_diffusers_shape(name, shape)

    network: VideoVAE | ImageVAE
    if isinstance(config, VideoVAEConfig):
        network = VideoVAE(config, ops=ops, device="meta")
    else:
        assert isinstance(config, ImageVAEConfig)
        network = ImageVAE(config, ops=ops, device="meta")
    with checkpoint:
        return assign_weights(network, checkpoint, dtype=dtype, device=device, convert=to_ours)


def load_text_encoder_nano(
    path: str | Path | CheckpointInfo,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> NanoTextEncoder:
    """Load nano's text encoder.

    Args:
        path: A .safetensors file, or a folder with a text_encoder sub-folder; or what `identify`
            said of it.
        dtype: Storage dtype of the weights; None keeps the file's.
        device: Where the weights go.

    Returns:
        The encoder in evaluation mode without gradients.

    Raises:
        CheckpointError: The file cannot be used or is another text encoder.
    """
    info = _identified(path, "text_encoder")
    if info.variant != "nano":
        raise CheckpointError(
            f"{info.path} is the text encoder {info.variant}: expected nano's own, "
            "which comes with the package."
        )
    (file,) = {entry.file for entry in info.header.tensors.values()}
    encoder = load_nano_text_encoder(file, dtype=dtype, device=device)
    return encoder.requires_grad_(False)


def assign_weights(
    network: _Network,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    convert: Callable[[str, Shape], tuple[str, Shape]] = lambda name, shape: (name, shape),
) -> _Network:
    """Give a network built on the meta device the tensors of a checkpoint.

    Args:
        network: Built on the meta device; parameters that are elsewhere may be missing.
        checkpoint: Its tensors.
        dtype: Storage dtype of floating tensors; None keeps the checkpoint's, and matrices packed
            that the network's layers can unpack. Of an 8-bit dtype vectors are kept in bf16.
        device: Where tensors go.
        convert: Name and shape in the checkpoint -> name and shape in the network.

    Returns:
        The same network in evaluation mode without gradients.

    Raises:
        CheckpointError: Names or shapes are not exactly the network's.
    """
    state = network.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found: dict[str, Shape] = {n: expected[n] for n, tensor in state.items() if not tensor.is_meta}
    sources: dict[str, str] = {}
    for source, entry in checkpoint.entries.items():
        name, found_shape = convert(source, entry.shape)
        found[name], sources[name] = found_shape, source
    check_names_and_shapes(checkpoint.info.path, expected, found)
    if torch.device(device).type != "meta":
        packed: dict[str, str] = {}
        if dtype is None:
            kinds = {name: checkpoint.entries[source].packing for name, source in sources.items()}
            packed = packed_names(network, kinds)
        if dtype is None and checkpoint.is_unpacked:
            dtype = checkpoint.main_dtype  # the network computes in the dtype of its first layer
        for name, packing in packed.items():
            blocks = checkpoint.read_packed(sources.pop(name))
            layer = network.get_submodule(name.removesuffix(".weight"))
            assert isinstance(layer, PackedWeight)
            layer.hold(blocks.to(device), packing)
        for name, source in sources.items():
            wanted = dtype
            if dtype is not None and dtype.itemsize == 1 and len(found[name]) < 2:
                # norms and biases are few and suffer most from 8 bits
                wanted = torch.bfloat16
            tensor = checkpoint.read(source, wanted).reshape(found[name])
            _assign(network, name, tensor.to(device))
        left = [name for name, tensor in network.named_buffers() if tensor.is_meta]
        assert not left, f"buffers that no file holds must be made in forward: {left}"
    return network.eval().requires_grad_(False)


def check_names_and_shapes(
    path: Path,
    expected: Mapping[str, Shape],
    found: Mapping[str, Shape],
) -> None:
    """Compare what a network needs with what a checkpoint holds.

    Raises:
        CheckpointError: Something is missing, unexpected or wrongly shaped; the sentence
            counts each kind and names the first of it.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrongly shaped", wrong),
        )
        if names
    ]
    if not faults:
        return
    raise CheckpointError(
        f"{path} does not fit its network of {len(expected)} tensors: {'; '.join(faults)}; "
        "download the file again, or use one in an unmodified layout."
    )


def _identified(path: str | Path | CheckpointInfo, component: Component | None) -> CheckpointInfo:
    """Return what a checkpoint is; its header is read unless that was done."""
    if not isinstance(path, CheckpointInfo):
        return identify(path, component=component)
    if component not in (None, path.kind):
        found, wanted = (part.replace("_", " ") for part in (path.kind, component))
        raise CheckpointError(f"{path.path} holds a {found}: expected a {wanted}; give that part.")
    return path


def _assign(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Put one tensor in place of the parameter or buffer of that name."""
    owner_name, _, leaf = name.rpartition(".")
    owner = network.get_submodule(owner_name)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
