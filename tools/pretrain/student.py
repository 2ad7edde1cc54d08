"""The model that is pretrained: transformers' AST with separable position embeddings.

During training, a patch's position embedding is a time vector plus a frequency vector; `bake`
writes their sums into the stock table, so that an ordinary ASTModel is saved.
"""

import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTModel


class Student(nn.Module):
    """AST for any number of frames up to that of its position table.

    A shorter crop uses the centre of the table, as the toolkit does when it loads an AST.
    """

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.model = ASTModel(config)
        self.bands, self.columns = self.model.embeddings.get_shape(config)
        dim = config.hidden_size
        self.time = nn.Parameter(0.02 * torch.randn(self.columns, dim))
        self.frequency = nn.Parameter(0.02 * torch.randn(self.bands, dim))
        self.special = nn.Parameter(0.02 * torch.randn(2, dim))
        self.model.embeddings.position_embeddings.requires_grad_(False)
        for parameter in (
            self.model.embeddings.cls_token,
            self.model.embeddings.distillation_token,
        ):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, frames: Tensor, shift: int = 0, bands: Tensor | None = None) -> Tensor:
        """Normalised frames [B, T, F] -> tokens [B, 2 + f c, d] after the last layer norm.

        `shift` moves the crop in the time table from its centre, in columns. `bands` [k, c] names
        the patches to keep in each column; the others are dropped, and f becomes k.
        """
        embeddings = self.model.embeddings
        projection = embeddings.patch_embeddings.projection
        patches = projection(frames[:, None].transpose(2, 3))  # [B, d, f, c]
        columns = patches.shape[3]
        start = self.columns // 2 - columns // 2 + shift
        position = self.frequency[:, None] + self.time[start : start + columns]  # [f, c, d]
        x = patches.permute(0, 2, 3, 1) + position  # [B, f, c, d]
        if bands is not None:
            x = x[:, bands, torch.arange(columns)]
        x = x.flatten(1, 2)
        special = torch.cat([embeddings.cls_token, embeddings.distillation_token], dim=1)
        x = torch.cat([(special + self.special).expand(len(x), -1, -1), x], dim=1)
        for layer in self.model.layers:
            x = layer(x)
        tokens: Tensor = self.model.layernorm(x)
        return tokens

    def some_bands(self, columns: int, keep: int, generator: torch.Generator) -> Tensor:
        """`keep` different bands for every column, [keep, columns]."""
        scores = torch.rand(self.bands, columns, generator=generator)
        return scores.argsort(dim=0)[:keep]

    @torch.no_grad()
    def start_from_patches(self, patches: Tensor, exponent: float = 0.35) -> None:
        """Initialise the first layer with whitened, rotated principal components of real patches.

        Args:
            patches: normalised, [n, 256].
            exponent: 0.5 would whiten completely.
        """
        projection = self.model.embeddings.patch_embeddings.projection
        centre = patches.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - centre).T))
        dim = projection.out_channels
        keep = min(dim, patches.shape[1])
        values, vectors = values[-keep:].clamp(min=1e-6), vectors[:, -keep:]
        rotation = torch.linalg.qr(torch.randn(dim, dim))[0][:, :keep]
        weight = rotation @ (values**-exponent * vectors).T
        weight *= 0.5 / ((patches - centre) @ weight.T).std()
        projection.weight = nn.Parameter(weight.view_as(projection.weight))
        projection.bias = nn.Parameter(-(weight @ centre))

    @torch.no_grad()
    def bake(self) -> ASTModel:
        """The stock model with this student's positions in its table."""
        table = (self.frequency[:, None] + self.time).flatten(0, 1)
        table = torch.cat([self.special, table])[None]
        self.model.embeddings.position_embeddings.copy_(table)
        return self.model
