"""Close a step: turn its clock into a record for the user and a report for the other ranks."""

from gradsieve.telemetry.clock import StepClock
from gradsieve.telemetry.record import StepRecord
from gradsieve.telemetry.report import StepReport


def close_step(
    clock: StepClock,
    *,
    step: int,
    exchange: str,
    reason: str,
    seconds: float,
    window: float,
    scale: float,
    residual_norm: float,
    loss_scale: float,
    nonfinite_parameters: dict[int, list[str]],
) -> tuple[StepRecord, StepReport]:
    """Return the record and the report of a step.

    Args:
        seconds: the seconds since the step before ended.
        window: the seconds from the first bucket to the last.
        scale: the factor of all thresholds.
        exchange, reason, residual_norm, loss_scale, nonfinite_parameters: see `StepRecord`.
    """
    record = StepRecord(
        step=step,
        exchange=exchange,
        reason=reason,
        thresholds=dict(clock.thresholds),
        densities={name: moments.density for name, moments in clock.moments.items()},
        density=clock.sent_elements / clock.elements if clock.elements else 0.0,
        frame_bytes=clock.frame_bytes,
        bits_per_parameter=8 * clock.frame_bytes / clock.elements if clock.elements else 0.0,
        add_seconds=clock.seconds["add"],
        rotate_seconds=clock.seconds["rotate"],
        select_seconds=clock.seconds["select"],
        encode_seconds=clock.seconds["encode"],
        exchange_seconds=clock.seconds["exchange"],
        decode_seconds=clock.seconds["decode"],
        exposed_seconds=None if clock.plain else clock.exposed_seconds,
        residual_norm=residual_norm,
        plain=clock.plain,
        nonfinite=clock.nonfinite,
        nonfinite_parameters=nonfinite_parameters,
        loss_scale=loss_scale,
    )
    processor = clock.processor_seconds
    report = StepReport(
        scale=scale,
        frame_bytes=clock.frame_bytes,
        step=seconds,
        window=window,
        select=processor["rotate"] + processor["select"],
        code=processor["encode"] + processor["decode"],
        overhead=clock.overhead,
        add=clock.seconds["add"],
        meet=clock.meet_seconds,
        transfer=clock.seconds["exchange"] - clock.meet_seconds,
        wait=clock.wait_seconds,
        stolen=clock.stolen_seconds,
    )
    return record, report
