"""Threshold-pruned gradients for PyTorch data-parallel training over slow links."""

from gradsieve import checkpoint
from gradsieve.averager import Averager
from gradsieve.codec import FrameError, FrameReport, SectionReport, decode, encode, inspect
from gradsieve.config import SieveConfig
from gradsieve.control.budget import Budget
from gradsieve.control.thresholds import Density, Fixed, Measured, Sigma, Threshold, UnsentMean
from gradsieve.errors import MismatchError, SieveError
from gradsieve.exchange import ExchangeError
from gradsieve.hook import attach, sieve_hook
from gradsieve.outer import Nesterov, OuterRecord, OuterSync
from gradsieve.recording import JsonLines, Recorder
from gradsieve.runtime.version import __version__
from gradsieve.saved.reshard import reshard
from gradsieve.sieve import Magnitudes, Moments, Workspace, measure, select
from gradsieve.state import SieveState
from gradsieve.telemetry.record import StepRecord, Totals

__all__ = [
    "Averager",
    "Budget",
    "Density",
    "ExchangeError",
    "Fixed",
    "FrameError",
    "FrameReport",
    "JsonLines",
    "Magnitudes",
    "Measured",
    "MismatchError",
    "Moments",
    "Nesterov",
    "OuterRecord",
    "OuterSync",
    "Recorder",
    "SectionReport",
    "SieveConfig",
    "SieveError",
    "SieveState",
    "Sigma",
    "StepRecord",
    "Threshold",
    "Totals",
    "UnsentMean",
    "Workspace",
    "__version__",
    "attach",
    "checkpoint",
    "decode",
    "encode",
    "inspect",
    "measure",
    "reshard",
    "select",
    "sieve_hook",
]
