"""The matrix products that some work cannot do without: the limit that its speed is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from siltstone.model.config import CoreConfig
from siltstone_services.benchmark.world import World


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product: rows times [in, out]."""

    num_rows: int
    num_in: int
    num_out: int

    @property
    def back(self) -> Product:
        """The product that brings a gradient back to the rows, the matrix being frozen."""
        return Product(self.num_rows, self.num_out, self.num_in)

    @property
    def num_flop(self) -> int:
        """Multiplications and additions."""
        return 2 * self.num_rows * self.num_in * self.num_out


def layer_products(config: CoreConfig, num_tokens: int) -> list[Product]:
    """Returns the products of one layer of a core, forward."""
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return [
        Product(num_tokens, config.d_model, heads),
        Product(num_tokens, config.num_heads * config.head_dim, config.d_model),
        Product(num_tokens, config.d_model, 2 * config.d_mlp),
        Product(num_tokens, config.d_mlp, config.d_model),
    ]


def head_product(config: CoreConfig, num_tokens: int) -> Product:
    """Returns the product of a core's head, forward."""
    return Product(num_tokens, config.d_model, config.vocab_size)


class ProductLimit:
    """Bare matrix products, in memory that is there already.

    A core's attention and norms, low-rank products and optimiser steps are not counted: they lower what is reached.
    """

    def __init__(self, world: World, products: Sequence[Product]) -> None:
        self.num_flop = sum(one.num_flop for one in products)
        rows = {one: (world.draw(one.num_rows, one.num_in), world.draw(one.num_rows, one.num_out)) for one in products}
        weights = {one: world.draw(one.num_out, one.num_in) for one in rows}
        self._calls = [(rows[one][0], weights[one].T, rows[one][1]) for one in products]

    def run(self) -> None:
        """Does the products once."""
        for left, right, out in self._calls:
            torch.mm(left, right, out=out)
