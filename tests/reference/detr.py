"""DETR's network as the paper draws it (arXiv 2005.12872, figure 10), on torch's own attention; slow and obvious.

Its modules have the names of facebookresearch's checkpoints.
"""

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(256, 8)
        self.linear1, self.linear2 = nn.Linear(256, 2048), nn.Linear(2048, 256)
        self.norm1, self.norm2 = nn.LayerNorm(256), nn.LayerNorm(256)

    def forward(self, x: Tensor, pos: Tensor, padding: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x + pos, x + pos, x, key_padding_mask=padding)[0])
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = nn.MultiheadAttention(256, 8), nn.MultiheadAttention(256, 8)
        self.linear1, self.linear2 = nn.Linear(256, 2048), nn.Linear(2048, 256)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(256), nn.LayerNorm(256), nn.LayerNorm(256)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, pos: Tensor, padding: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x + queries, x + queries, x)[0])
        x = self.norm2(x + self.multihead_attn(x + queries, memory + pos, memory, key_padding_mask=padding)[0])
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


class Layers(nn.Module):
    def __init__(self, layer: type[nn.Module], norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(6))
        if norm:
            self.norm = nn.LayerNorm(256)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, width) for width in (256, 256, 4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class DETR(nn.Module):
    def __init__(self, backbone: str = "resnet50", dilation: bool = False, num_classes: int = 91) -> None:
        super().__init__()
        network = get_model(
            backbone,
            weights=None,
            norm_layer=FrozenBatchNorm2d,
            replace_stride_with_dilation=[False, False, dilation],
        )
        self.backbone = nn.ModuleList([nn.Module()])
        self.backbone[0].body = IntermediateLayerGetter(network, {"layer4": "0"})
        self.input_proj = nn.Conv2d(2048, 256, 1)
        self.query_embed = nn.Embedding(100, 256)
        self.transformer = nn.Module()
        self.transformer.encoder = Layers(EncoderLayer, norm=False)
        self.transformer.decoder = Layers(DecoderLayer, norm=True)
        self.class_embed = nn.Linear(256, num_classes + 1)
        self.bbox_embed = MLP()

    def forward(self, images: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images `[B, 3, H, W]`, padding bool `[B, H, W]` -> logits and boxes of the six layers."""
        features = self.input_proj(self.backbone[0].body(images)["0"])
        batch, _, height, width = features.shape
        padding = nn.functional.interpolate(padding[:, None].float(), (height, width))[:, 0].bool()
        pos = torch.stack([pos_embed(image_padding) for image_padding in padding])
        x, pos = (tensor.flatten(2).permute(2, 0, 1) for tensor in (features, pos))
        padding = padding.flatten(1)
        for layer in self.transformer.encoder.layers:
            x = layer(x, pos, padding)
        queries = self.query_embed.weight[:, None].repeat(1, batch, 1)
        hidden, hidden_states = torch.zeros_like(queries), []
        for layer in self.transformer.decoder.layers:
            hidden = layer(hidden, queries, x, pos, padding)
            hidden_states.append(self.transformer.decoder.norm(hidden).transpose(0, 1))
        stacked = torch.stack(hidden_states)
        return self.class_embed(stacked), self.bbox_embed(stacked).sigmoid()


def pos_embed(padding: Tensor) -> Tensor:
    """Position embedding `[256, h, w]` of a map with this padding, bool `[h, w]`, number by number."""
    result = torch.zeros(256, *padding.shape)
    inside = (~padding).tolist()
    for row in range(padding.shape[0]):
        for column in range(padding.shape[1]):
            y = sum(inside[r][column] for r in range(row + 1)) / (sum(line[column] for line in inside) + 1e-6)
            x = sum(inside[row][: column + 1]) / (sum(inside[row]) + 1e-6)
            for start, part in ((0, y), (128, x)):
                angles = part * 2 * torch.pi / 10000.0 ** (torch.arange(0, 128, 2) / 128)
                result[start : start + 128 : 2, row, column] = angles.sin()
                result[start + 1 : start + 128 : 2, row, column] = angles.cos()
    return result
