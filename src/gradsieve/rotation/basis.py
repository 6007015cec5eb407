"""An orthonormal basis that follows the gradients."""

import numpy as np
import torch
from torch import Tensor

from gradsieve.rotation.fixed_order import add_gram, multiply, orthonormal_factor
from gradsieve.runtime.arrays import FLOAT32, FLOAT64, require_matrix

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
        """Add rows of averaged coefficients, float32 [*, size], to the covariance.

        Raises:
            TypeError: another dtype.
            ValueError: another shape.
        """
        if matrix.is_cpu:
            rows, covariance = matrix.contiguous().numpy(), self.covariance.numpy()
            size = covariance.shape[0]
            require_matrix("the coefficients", rows, FLOAT32, (-1, size))
            require_matrix("the covariance", covariance, FLOAT32, (size, size))
            add_gram(rows, covariance)
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
    """Q of the QR decomposition of a square matrix, float64, the same bits on every CPU.

    Raises:
        TypeError: another dtype.
        ValueError: another shape.
    """
    if not matrix.is_cpu:
        return torch.linalg.qr(matrix).Q  # type: ignore[no-any-return]
    overwritten = matrix.clone(memory_format=torch.contiguous_format).numpy()
    require_matrix("the matrix", overwritten, FLOAT64, (len(matrix), len(matrix)))
    factor = np.empty_like(overwritten)
    orthonormal_factor(overwritten, factor)
    return torch.from_numpy(factor)


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product, of one dtype, the same bits on every CPU.

    Raises:
        TypeError: dtypes that differ, or neither float32 nor float64.
        ValueError: shapes that do not fit.
    """
    if not left.is_cpu:
        return torch.mm(left, right)
    factor, other = left.contiguous().numpy(), right.contiguous().numpy()
    dtype = FLOAT64 if left.dtype is torch.float64 else FLOAT32
    require_matrix("the left factor", factor, dtype, (-1, -1))
    require_matrix("the right factor", other, dtype, (factor.shape[1], -1))
    result = np.empty((factor.shape[0], other.shape[1]), dtype)
    multiply(factor, other, result)
    return torch.from_numpy(result)
