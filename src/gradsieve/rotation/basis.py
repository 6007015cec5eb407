"""An orthonormal basis that adapts to gradients."""

import numpy as np
import torch
from torch import Tensor

from gradsieve.rotation.fixed_order import add_gram, multiply, orthonormal_factor
from gradsieve.runtime.arrays import FLOAT32, FLOAT64, require_matrix

FORGETTING = 0.6
"""The factor of the covariance at each turn. It then remembers about 25 steps."""


class Basis:
    """An orthonormal basis for the rows of a gradient.

    It approaches the eigenvectors of the covariance of averaged gradients' rows, sorted by
    eigenvalue. Each turn is one step of the unshifted QR algorithm (J. Francis, The QR
    Transformation, Computer Journal 4(3), 1961). This is the subspace iteration of SOAP (N. Vyas et
    al., 2024, algorithm 4), written in the coordinates of the current basis.

    Args:
        size: the length of a row.
        device: where the basis is kept.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.vectors = torch.eye(size, device=device, dtype=torch.float32)
        """float32 [size, size]. Each row is a vector of the basis."""
        self.covariance = torch.zeros(size, size, device=device, dtype=torch.float32)
        """float32 [size, size], in the coordinates of `vectors`, and not centred."""

    def learn(self, matrix: Tensor) -> None:
        """Add rows of averaged coefficients to the covariance.

        Args:
            matrix: float32 [rows, size].

        Raises:
            TypeError: the matrix has another dtype.
            ValueError: the matrix has another shape.
        """
        if matrix.is_cpu:
            rows, covariance = matrix.contiguous().numpy(), self.covariance.numpy()
            size = covariance.shape[0]
            require_matrix("the coefficients", rows, FLOAT32, (-1, size))
            require_matrix("the covariance", covariance, FLOAT32, (size, size))
            add_gram(rows, covariance)
        else:
            self.covariance.addmm_(matrix.T, matrix)

    def mean_squares(self) -> Tensor:
        """Return the mean square of each coefficient, float32 [size], descending.

        They are what was learned, up to a factor. The vectors are about in this order.
        """
        return self.covariance.diagonal().sort(descending=True).values

    def turn(self) -> Tensor | None:
        """Turn the basis towards the eigenvectors of the covariance.

        Returns:
            the turn, float32 [size, size]: the new coefficients are the old ones times the turn.
            None, with the basis unchanged, if nothing was learned or the covariance is not finite.
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
    """Return Q of the QR decomposition of a matrix, in the same bits on every CPU.

    Args:
        matrix: float64 [N, N].

    Raises:
        TypeError: the matrix has another dtype.
        ValueError: the matrix is not square.
    """
    if not matrix.is_cpu:
        return torch.linalg.qr(matrix).Q  # type: ignore[no-any-return]
    overwritten = matrix.clone(memory_format=torch.contiguous_format).numpy()
    require_matrix("the matrix", overwritten, FLOAT64, (len(matrix), len(matrix)))
    factor = np.empty_like(overwritten)
    orthonormal_factor(overwritten, factor)
    return torch.from_numpy(factor)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product, in the same bits on every CPU.

    Args:
        left: float32 or float64 [M, K].
        right: [K, N], of the same dtype.

    Raises:
        TypeError: the dtypes differ, or are neither float32 nor float64.
        ValueError: the shapes do not fit.
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
