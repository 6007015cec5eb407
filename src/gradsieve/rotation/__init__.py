"""Rotate gradients into a basis in which few coefficients hold most of their energy."""

from gradsieve.rotation.rotation import Rotation, rotation_of

__all__ = ["Rotation", "rotation_of"]
