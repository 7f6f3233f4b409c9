"""README's table of what is trained and sent, against numbers worked by hand."""

from collections.abc import Callable

import pytest

from common.commands.tunings import TUNINGS, TuningRow, markdown, tuning_table
from common.errors import ConfigError


def parameters(rows: list[TuningRow]) -> dict[str, int]:
    return {row.tuning: row.parameters for row in rows}


def test_table_of_resnet18_equals_the_numbers_worked_by_hand() -> None:
    rows = tuning_table(["resnet18"], TUNINGS, num_classes=10)

    head = 512 * 10
    # BatchNorm channels: the stem, then eight blocks of two and three shortcuts.
    channels = 64 + 4 * 64 + (4 * 128 + 128) + (4 * 256 + 256) + (4 * 512 + 512)
    layer4 = 9 * (256 * 512 + 3 * 512 * 512) + 256 * 512 + 2 * 5 * 512
    # Rank 8 times what goes in (with the kernel's area) and what comes out, layer by layer.
    stage = {n: (9 * n // 2 + n) + 3 * (9 * n + n) + (n // 2 + n) for n in (128, 256, 512)}
    lora = 8 * (3 * 49 + 64 + 4 * (9 * 64 + 64) + sum(stage.values()))
    assert parameters(rows) == {
        "head": head,
        "bias": channels + head,
        "norm": 2 * channels + head,
        "lora": lora + head,
        "last:1": layer4 + head,
        "full": 11_176_512 + head,  # torchvision states 11,689,512 with its classifier of 513,000
    }
    assert all(row.num_bytes == 4 * row.parameters and not row.refusal for row in rows)


@pytest.mark.soak
def test_table_of_vgg16_has_no_norm_and_counts_its_convolutions() -> None:
    rows = tuning_table(["vgg16"], ("norm", "full"), num_classes=3)

    assert parameters(rows) == {"norm": 0, "full": 14_714_688 + 3 * 512}
    assert [row.tuning for row in rows if row.refusal] == ["norm"]
    assert "it has head, bias, lora, last:<n>, full" in rows[0].refusal


def test_lora_counts_rank_times_both_sides_of_every_layer() -> None:
    """Worked from the layers of torchvision's mobilenet_v3_small: 1x1 convolutions, the stem, squeeze and excite."""
    from torch import nn
    from torchvision import models

    rank, count = 8, 0
    for name, layer in models.mobilenet_v3_small().named_modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and name.startswith("features"):
            count += rank * (layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] + layer.out_channels)

    assert parameters(tuning_table(["mobilenet_v3_small"], ["lora"], num_classes=10)) == {"lora": count + 576 * 10}


def test_table_refuses_an_unknown_backbone() -> None:
    with pytest.raises(ConfigError, match="not known to timm or torchvision"):
        tuning_table(["resnet18", "resnet19"], ["head"])


def test_markdown_has_a_line_a_backbone_and_a_column_a_way_of_tuning() -> None:
    rows = [
        TuningRow("a", "head", 640, 2560, ""),
        TuningRow("a", "norm", 0, 0, "no such layers"),
        TuningRow("b", "head", 12_800, 51_200, ""),
        TuningRow("b", "norm", 3_379_968, 13_519_872, ""),
    ]

    assert markdown(rows).splitlines() == [
        "| backbone | `head` | `norm` |",
        "|---|---|---|",
        "| `a` | 640, 2.56 kB, DP yes | no such layers |",
        "| `b` | 12.8 k, 51.2 kB, DP yes | 3.38 M, 13.5 MB, DP yes |",
    ]


def test_list_tunings_counts_the_networks_that_it_builds() -> None:
    told: list[int] = []

    def progress(total: int, _: str) -> Callable[[int], None]:
        told.append(-total)
        return told.append

    tuning_table(["resnet18"], ["head", "norm"], progress=progress)

    assert told == [-2, 1, 1]
