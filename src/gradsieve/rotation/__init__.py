"""A shared basis in which few coefficients carry most of a matrix's gradient."""

from gradsieve.rotation.rotation import Rotation, rotation_of

__all__ = ["Rotation", "rotation_of"]
