"""From images to packed tokens: square patches, a class token, positions on a grid. Knows no Transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmworks.core.errors import ConfigError


class PatchEmbedding(nn.Module):
    """Cuts images into patches, makes a vector of each and adds one for its place (ViT, arXiv:2010.11929).

    Images of different sizes are packed like documents of different lengths: rows from top to bottom, in each the
    patches from left to right, the class token first. Pixels that fill no patch are left out.

    Args:
        hidden_size: E.
        patch_size: P, in pixels.
        num_channels: C.
        grid_size: patches along each side of the images that the positions are trained for.
        class_token: whether a trained vector comes before the patches.
        bias: of the projection.
    """

    class_token: nn.Parameter | None

    def __init__(
        self, hidden_size: int, patch_size: int, num_channels: int, grid_size: int, *, class_token: bool = True,
        bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid_size = grid_size
        self.register_parameter("class_token", nn.Parameter(torch.empty(1, hidden_size)) if class_token else None)
        self.projection = nn.Conv2d(num_channels, hidden_size, patch_size, stride=patch_size, bias=bias)
        self.positions = nn.Embedding(grid_size**2 + class_token, hidden_size)

    def forward(self, pixel_values: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Embed images.

        Args:
            pixel_values: [B, C, H, W], or images [C, H, W] of any sizes.

        Returns:
            [N, E] tokens of all images, [B+1] int32 where each image begins and ends.

        Raises:
            ConfigError: there are no images, or they have another shape or less than a patch.
        """
        batches = [pixel_values] if isinstance(pixel_values, Tensor) else [image[None] for image in pixel_values]
        if not sum(map(len, batches)):
            raise ConfigError("there are no images", "Give at least one")
        tokens = [self._embed(batch) for batch in batches]
        lengths = [x.shape[1] for x in tokens for _ in x]
        bounds = torch.tensor([0, *lengths], device=tokens[0].device).cumsum(0).to(torch.int32)
        return torch.cat([x.flatten(0, 1) for x in tokens]), bounds

    def _embed(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, T, E]."""
        channels, size = self.projection.in_channels, self.projection.kernel_size[0]
        if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < size:
            raise ConfigError(
                f"an image of shape {list(images.shape[1:])} is not [{channels}, height, width] with at least {size} "
                "pixels each way", "Prepare images as the model's preprocessor_config.json says",
            )  # fmt: skip
        x = self.projection(images.to(self.projection.weight.dtype))
        positions = self._positions(x.shape[2], x.shape[3])
        x = x.flatten(2).mT
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        return x + positions

    def _positions(self, rows: int, columns: int) -> Tensor:
        """[T, E] for a grid of patches; bicubic in between where it is not the trained one."""
        table, side = self.positions.weight, self.grid_size
        if (rows, columns) == (side, side):
            return table
        first, grid = table.tensor_split([len(table) - side**2])
        grid = grid.T.reshape(1, -1, side, side).float()
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic")[0]
        return torch.cat([first, grid.flatten(1).T.to(table.dtype)])
