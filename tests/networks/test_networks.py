"""Networks are data until they are built, and keep the shape law."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle.config_item import ComponentLocator
from torch import nn

from medmeta.networks import (
    NetworkError,
    are_tokens,
    build,
    encoded,
    encoder,
    feature_size,
    features,
    group_norm,
    running_statistics,
    unet,
)
from medmeta.volumes.component import component


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_specifications_survive_json_and_keep_the_shape_law(dims: int, channels: int) -> None:
    image = torch.zeros(2, channels, *[32] * dims)
    dense = build(json.loads(json.dumps(unet(dims, channels, base=4, feature=5))))
    assert dense(image).shape == (2, 5, *[32] * dims)
    whole = build(json.loads(json.dumps(encoder(dims, channels, base=4, feature=7))))
    assert whole(image).shape == (2, 7)
    for network in (dense, whole):
        assert not running_statistics(network)
        assert feature_size(network) == feature_size(network, (channels, *[32] * dims))
        assert feature_size(network.double(), (channels, *[32] * dims)) == feature_size(network)


def test_an_encoder_sees_how_bright_a_picture_is() -> None:
    """Normalising each channel over the voxels before averaging them would hide it."""
    torch.manual_seed(0)
    network = build(encoder(2, 1, base=4))
    noise = torch.randn(1, 1, 32, 32)
    spot = noise.clone()
    spot[..., 10:20, 10:20] += 3
    with torch.no_grad():
        assert float((network(spot) - network(noise)).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"spatial_dims": 2}, "a specification with a '_target_', found the keys spatial_dims"),
        ({"_target_": "os.system", "command": "true"}, "found 'os.system'"),
        ({"_target_": "torch.nn.Linear", "in_features": "$__import__('os').system('true')"}, "plain values"),
        (
            {"_target_": "monai.networks.nets.UNet", "act": {"_target_": "builtins.exec"}},
            "found 'builtins.exec'",
        ),
        ({"_target_": "torch.nn.Linear", "in_feature": 4}, "in_feature"),
        ({"_target_": "torch.nn.NoSuchThing"}, "NoSuchThing"),
        ({"_target_": "torch.nn.functional.relu"}, "found 'torch.nn.functional.relu'"),
        ({"_target_": "torch.nn.Linear", "_mode_": "debug"}, "found the key '_mode_'"),
        ({"_target_": "torch.nn.Linear", "_disabled_": True}, "a specification of a network"),
    ],
)
def test_a_specification_runs_nothing_and_says_what_is_wrong(spec: dict[str, object], words: str) -> None:
    with pytest.raises(NetworkError) as caught:
        build(spec)
    assert words in str(caught.value)


def test_a_specification_writes_no_file(tmp_path: Path) -> None:
    """MONAI's networks have functions beside them, and its parser calls whatever is named."""
    linear = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    written = tmp_path / "weights.pt"
    with pytest.raises(NetworkError, match=r"found 'monai.networks.utils.save_state'. Name a class"):
        build({"_target_": "monai.networks.utils.save_state", "src": linear, "path": str(written)})
    assert not written.exists()


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (build, {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}),
        (component, {"_target_": "Flipd", "keys": "image"}),  # volumes are prepared by several threads
    ],
)
def test_a_module_loaded_by_another_thread_meanwhile_stops_nothing(
    make: Callable[[Mapping[str, Any]], Any], spec: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI looks for the class among all loaded modules, of which there may be one more all of a sudden."""
    looked: list[int] = []
    plain = ComponentLocator._find_module_names

    def stumbling(self: ComponentLocator) -> list[str]:
        looked.append(1)
        if len(looked) < 3:
            raise RuntimeError("dictionary changed size during iteration")
        return plain(self)

    monkeypatch.setattr(ComponentLocator, "_find_module_names", stumbling)
    assert type(make(spec)).__name__ == spec["_target_"].split(".")[-1]
    assert len(looked) == 3


def test_group_norm_takes_the_place_of_batch_norm_everywhere() -> None:
    spec = {
        "_target_": "monai.networks.nets.ResNet",
        "block": "basic",
        "layers": [1, 1, 1, 1],
        "block_inplanes": [8, 16, 32, 64],
        "spatial_dims": 2,
        "n_input_channels": 1,
        "num_classes": 3,
    }
    network = build(spec)
    assert running_statistics(network)
    swapped = group_norm(network)
    assert not running_statistics(swapped)
    assert running_statistics(network)
    assert swapped(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    remembering = nn.InstanceNorm2d(4, track_running_stats=True)
    assert running_statistics(remembering)
    assert not running_statistics(group_norm(nn.Sequential(remembering)))


def test_features_of_several_outputs_and_maps() -> None:
    map_ = torch.randn(2, 3, 4, 4)
    assert torch.equal(features([map_, map_ * 2], (4, 4), dense=True), map_)
    assert torch.allclose(features(map_, (9, 9), dense=False), map_.mean((2, 3)))


def transformer(side: int = 32) -> nn.Module:
    pytest.importorskip("einops")
    torch.manual_seed(0)
    sizes = {"img_size": [side] * 2, "patch_size": 8, "hidden_size": 24, "mlp_dim": 16}
    depth = {"num_layers": 1, "num_heads": 2, "spatial_dims": 2, "in_channels": 1}
    return build({"_target_": "monai.networks.nets.ViT", **sizes, **depth})


def test_tokens_are_averaged_over_their_number() -> None:
    """Over their features the last norm of a transformer leaves nothing."""
    network, image = transformer(), torch.randn(3, 1, 32, 32)
    output = network(image)
    found = features(output, (32, 32), dense=False)
    assert output[0].shape == (3, 16, 24)
    assert torch.allclose(found, output[0].mean(1))
    assert float(found.detach().abs().max()) > 0.1
    assert feature_size(network) == feature_size(network, (1, 32, 32)) == found.shape[1] == 24


def test_three_axes_of_a_line_are_a_map() -> None:
    """As many axes as tokens have; how many the image has tells them apart."""
    line, network = torch.randn(2, 1, 16), nn.Conv1d(1, 5, 3, stride=2)
    output = network(line)
    assert not are_tokens(output, (16,))
    assert torch.allclose(features(output, (16,), dense=False), output.mean(2))
    assert feature_size(network) == feature_size(network, (1, 16)) == 5


@pytest.mark.parametrize(
    ("spec", "side", "words"),
    [
        (
            {"_target_": "monai.networks.nets.BasicUNet", "features": [4, 4, 8, 8, 16, 4]},
            16,
            "spatial element",
        ),
        ({"_target_": "monai.networks.nets.SwinUNETR", "feature_size": 12}, 32, "spatial element"),
        ({"_target_": "monai.networks.nets.SwinUNETR", "feature_size": 12}, 24, "divisible by 2"),
        (unet(2, 1, base=4), 20, "Sizes of tensors must match"),
        (unet(2, 3, base=4), 16, "to have 3 channels, but got 1 channels"),
        (encoder(2, 1, base=4), 8, "Output size is too small"),
    ],
)
def test_images_of_sizes_that_a_network_does_not_take(spec: dict[str, object], side: int, words: str) -> None:
    more = {} if "spatial_dims" in spec else {"spatial_dims": 2, "in_channels": 1, "out_channels": 4}
    with pytest.raises(NetworkError) as caught:
        encoded(build({**spec, **more}), torch.zeros(2, 1, side, side), dense=False)
    assert f"found images of {side}x{side} voxels and 1 channel(s): " in str(caught.value)
    assert words in str(caught.value)
    assert "a larger patch" in str(caught.value)


def test_other_errors_of_a_network_are_its_own() -> None:
    with pytest.raises(RuntimeError, match="must be on one device"):
        encoded(Failing(), torch.zeros(1, 2), dense=False)


class Failing(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("all tensors must be on one device")


def test_a_network_that_writes_into_its_input_is_refused() -> None:
    first = nn.Sequential(nn.LeakyReLU(inplace=True), nn.Conv2d(1, 4, 1))
    with pytest.raises(NetworkError, match="leaves its input as it is, found one that writes into"):
        encoded(first, torch.zeros(1, 1, 4, 4), dense=True)
    later = nn.Sequential(nn.Conv2d(1, 4, 1), nn.LeakyReLU(inplace=True))
    assert encoded(later, torch.zeros(1, 1, 4, 4), dense=True).shape == (1, 4, 4, 4)
    with torch.inference_mode():
        assert encoded(later, torch.zeros(1, 1, 4, 4), dense=True).shape == (1, 4, 4, 4)


def test_group_norm_is_as_precise_as_the_network() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)).double()
    swapped = group_norm(network)
    assert {w.dtype for w in swapped.parameters()} == {torch.float64}
    assert swapped(torch.zeros(1, 1, 8, 8).double()).dtype == torch.float64
