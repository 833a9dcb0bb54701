"""The head: shapes, what its outputs mean, and that it can learn at all."""
from __future__ import annotations

import numpy as np
import torch

from dsac_ros.networks.encoder import CHANNELS, LAST_CHANNELS, LastInput, shared_encoder
from dsac_ros.networks.expert import MAX_SCALE, MIN_SCALE, Expert, predict


def expert(seed: int = 0) -> Expert:
    torch.manual_seed(seed)
    made = Expert(10, 32, 5)
    made.centres.copy_(torch.randn(5, 3) * 3)
    made.offset_scale.fill_(0.7)
    made.feature_mean.copy_(torch.randn(10))
    made.feature_scale.copy_(torch.rand(10) + 0.5)
    return made


def test_outputs_by_numpy() -> None:
    """The whole forward pass written out once more, in float64."""
    head, features = expert(), torch.randn(7, 10)
    p = {name: value.double().numpy() for name, value in head.state_dict().items()}
    x = (features.double().numpy() - p['feature_mean']) * p['feature_scale']
    x = np.maximum(x @ p['first.weight'].T + p['first.bias'], 0)
    for block in range(2):
        y = np.maximum(x @ p[f'residual.{block}.0.weight'].T + p[f'residual.{block}.0.bias'], 0)
        x = x + np.maximum(y @ p[f'residual.{block}.2.weight'].T + p[f'residual.{block}.2.bias'], 0)
    x = x @ p['last.weight'].T + p['last.bias']
    choice = np.exp(x[:, :5]) / np.exp(x[:, :5]).sum(1, keepdims=True)
    points, scales, logits = head(features)
    np.testing.assert_allclose(logits.detach().numpy(), x[:, :5], atol=1e-5)
    np.testing.assert_allclose(points.detach().numpy(), choice @ p['centres'] + 0.7 * x[:, 5:8], atol=1e-5)
    np.testing.assert_allclose(scales.detach().numpy(), np.clip(np.exp(x[:, 8] - 2), MIN_SCALE, MAX_SCALE), rtol=1e-5)


def test_rows_are_independent_and_scales_bounded() -> None:
    head, features = expert(), 1e4 * torch.randn(50, 10)
    points, scales, logits = head(features)
    assert points.shape == (50, 3) and scales.shape == (50,) and logits.shape == (50, 5)
    assert scales.min() >= MIN_SCALE * 0.999 and scales.max() <= MAX_SCALE
    torch.testing.assert_close(head(features[7:8])[0], points[7:8], rtol=1e-4, atol=1e-3)
    assert head(features[:0])[0].shape == (0, 3)


def test_buffers_are_saved_and_not_trained() -> None:
    head = expert()
    names = {name for name, _ in head.named_buffers()}
    assert names == {'feature_mean', 'feature_scale', 'centres', 'offset_scale'} and names < set(head.state_dict())
    assert not names & {name for name, _ in head.named_parameters()}


def test_several_experts_in_one_batch_are_each_by_itself() -> None:
    """Of one shape they are one batch; of several they are run one after the other, and a single one is bit for bit its own forward."""
    features = torch.randn(7, 10)
    same, other = [expert(seed) for seed in range(3)], Expert(10, 24, 5).eval()
    with torch.inference_mode():
        for experts in (same, [same[0], other], same[:1]):
            points, scales = predict(experts, features)
            assert points.shape == (len(experts), 7, 3) and scales.shape == (len(experts), 7)
            for i, each in enumerate(experts):
                alone = each(features)
                torch.testing.assert_close(points[i], alone[0], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(scales[i], alone[1], rtol=1e-5, atol=1e-6)
        assert torch.equal(predict(same[:1], features)[0][0], same[0](features)[0])
    assert not torch.allclose(points[0], predict(same[1:2], features)[0][0], atol=1e-2)


def test_gradients_are_finite_however_unsure_a_cell_is() -> None:
    head = expert()
    head.last.bias.data[-1] = 200.0  # exp of it is infinite in float32
    points, scales, _ = head(torch.randn(20, 10))
    (points.square().sum() + scales.log().sum()).backward()
    assert (scales == MAX_SCALE).all() and all(value.grad.isfinite().all() for value in head.parameters())


def test_experts_with_a_last_stage_of_their_own_beside_one_without() -> None:
    encoder = shared_encoder('cpu')
    images = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(3)).byte()
    features, last_input = encoder.with_last_input(images)
    rows_NC, cells_N = features[0].flatten(1).T, torch.arange(8 * 12)
    last = LastInput(last_input, cells_N, 8, 12)
    plain, own = Expert(CHANNELS, 24, 5).eval(), Expert(CHANNELS, 24, 5).eval()
    own.last_stage = encoder.own_last_stage()
    own.last_stage.project.bias.data += 0.5
    with torch.inference_mode():
        points, scales = predict([plain, own], rows_NC, last)
        changed = torch.cat([rows_NC[:, :-LAST_CHANNELS], rows_NC[:, -LAST_CHANNELS:] + 0.5], 1)
        own.last_stage = None
        for row, (head, seen) in enumerate(((plain, rows_NC), (own, changed))):
            torch.testing.assert_close(points[row], head(seen)[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(scales[row], head(seen)[1], rtol=1e-4, atol=1e-5)
