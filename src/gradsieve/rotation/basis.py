"""An orthonormal basis that follows the gradients."""

import torch
from torch import Tensor

from gradsieve.rotation.fixed_order import add_gram, multiply, orthonormal_factor

FORGETTING = 0.6
"""What is left of the covariance at each turn: as long a memory as about 25 steps."""


class Basis:
    """A basis of rows, which follows their gradients.

    It approaches the eigenvectors of the covariance of the averaged gradients' rows, by one step a
    turn of the unshifted QR algorithm (J. Francis, The QR Transformation, Computer Journal 4(3),
    1961), which sorts them by their eigenvalues. That is the subspace iteration of SOAP (N. Vyas
    et al., 2024, algorithm 4), written in the coordinates that the basis has reached.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.vectors = torch.eye(size, device=device, dtype=torch.float32)
        """float32 [size, size], a vector a row."""
        self.covariance = torch.zeros(size, size, device=device, dtype=torch.float32)
        """float32 [size, size], in the coordinates of `vectors`."""

    def learn(self, matrix: Tensor) -> None:
        """Add rows of averaged coefficients, float32 [*, size], to the covariance."""
        if matrix.is_cpu:
            add_gram(matrix.contiguous().numpy(), self.covariance.numpy())
        else:
            self.covariance.addmm_(matrix.T, matrix)

    def turn(self) -> Tensor | None:
        """Turn the basis; returns what coefficients are multiplied by on the right, [size, size].

        None where nothing was learned, or nothing finite.
        """
        covariance = self.covariance.double()
        if not bool(covariance.isfinite().all()):
            self.covariance.zero_()
            return None
        largest = covariance.diagonal().max()
        if float(largest) == 0:
            return None
        covariance /= largest
        turned = orthonormal(covariance)
        self.covariance = product(turned.T, product(covariance, turned)).float()
        self.covariance *= FORGETTING * largest.float()
        self.vectors = product(turned.T, self.vectors.double()).float()
        return turned.float()


def orthonormal(matrix: Tensor) -> Tensor:
    """Q of the QR decomposition, float64, the same bits on every CPU."""
    if not matrix.is_cpu:
        return torch.linalg.qr(matrix).Q  # type: ignore[no-any-return]
    factor = torch.empty_like(matrix)
    orthonormal_factor(matrix.clone().numpy(), factor.numpy())
    return factor


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product, of one dtype, the same bits on every CPU."""
    if not left.is_cpu:
        return torch.mm(left, right)
    result: Tensor = torch.empty(left.shape[0], right.shape[1], dtype=left.dtype, device="cpu")
    multiply(left.contiguous().numpy(), right.contiguous().numpy(), result.numpy())
    return result
