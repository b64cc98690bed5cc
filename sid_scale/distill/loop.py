"""The whole run, from top to bottom."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch.profiler import record_function

from sid_scale.config.run import RunConfig
from sid_scale.distill.ahead import waited
from sid_scale.distill.build import Progress, Run, build_run
from sid_scale.distill.checkpointing import Checkpoints, skipped_samples
from sid_scale.distill.ema_snapshots import write_ema_snapshot
from sid_scale.distill.evaluation import OpenEvaluation, no_evaluation
from sid_scale.distill.meter import Meter
from sid_scale.distill.outputs import (
    prepare_folder,
    show_samples,
    write_final_generator,
    write_generator,
)
from sid_scale.distill.profile import ProfileWindow
from sid_scale.distill.step import apply
from sid_scale.distill.telemetry import Telemetry
from sid_scale.distill.throughput import CountFlop, work_of
from sid_scale.distill.wandb_board import check_wandb
from sid_scale.errors import SidScaleError
from sid_scale.health.device_check import check_devices
from sid_scale.health.stragglers import RankTimes
from sid_scale.methods import GENERATOR
from sid_scale.ranks import Ranks, limit_waiting, on_any_rank, on_first_rank
from sid_scale.zero import power_ema
from sid_scale.zero.ema import ema_decay
from sid_scale.zero.fragments import parameter_shapes
from sid_scale.zero.settings import exact


class DivergedError(SidScaleError):
    """Too many updates in a row had to be skipped."""


class StopRequest(Protocol):
    """Whether this rank is asked to stop, and by what."""

    reason: str

    def asked(self) -> bool: ...


class NoStopRequest:
    """A run that is never asked to stop."""

    reason = ""

    def asked(self) -> bool:
        return False


def train(
    config: RunConfig,
    ranks: Ranks,
    stop: StopRequest | None = None,
    *,
    open_evaluation: OpenEvaluation = no_evaluation,
    count_flop: CountFlop | None = None,
    messages: Sequence[str] = (),
) -> Progress:
    """Distils a teacher as `config` says, until it is done or asked to stop. Collective.

    Leaves config.yaml, metrics.jsonl, tensorboard/, samples/, checkpoints/, best_generator/ (if it
    is evaluated), ema_snapshots/ (if it keeps several averages), wandb/ and profile/ (if asked for)
    and, at the end, generator/ in the run folder.

    Args:
        stop: None: the run is never asked to stop.
        open_evaluation: called once, when all else is built; makes what carries out the config's
            `evaluation`.
        count_flop: None: the log has no tflops_per_device and no mfu.
        messages: to be logged first.

    Raises:
        SidScaleError: something given cannot be used, or updates keep failing.
    """
    stop = stop or NoStopRequest()
    on_first_rank(lambda: check_wandb(config))
    checked = [check_devices(ranks)] if config.health.check_devices else []
    run = build_run(config, ranks)
    limit_waiting(config.collective_timeout_seconds)
    checkpoints = Checkpoints(run)
    resumed = checkpoints.restore()
    evaluation = open_evaluation(run)
    prepare_folder(run)
    progress, meter = run.progress, Meter(ranks.device, resumed.meters)
    work = work_of(run, count_flop)
    rank_times = RankTimes(run.own_time, ranks, config.health)
    with (
        run.open_streams() as streams,
        Telemetry(config, ranks, progress.images_seen, work) as telemetry,
        ProfileWindow(config, ranks, telemetry) as window,
    ):
        first = (*messages, *checked, *trained_shares(run), *work.messages, *resumed.messages)
        for line in first:
            telemetry.say(line)
        if progress.images_seen == 0:
            show_samples(run, telemetry)
            write_generator(run, run.snapshot_folder())

        telemetry.start_clock(progress.images_seen)
        stopping, _ = on_any_rank(stop.asked(), False)
        while progress.images_seen < config.total_images and not stopping:
            # One iteration: every update of the method.
            window.next_iteration(progress.images_seen)
            run.set_learning_rates()
            rank_times.begin()
            for update in run.method.updates(progress.images_seen):
                network = run.networks[update.role]
                searching, scale = network.loss_scale_can_fall, network.loss_scale
                with record_function(f"{update.label} update"):  # its name in `profile`'s trace
                    applied = apply(run, update, streams[update.role], meter)
                telemetry.updated(update.label)
                if not applied and searching:
                    telemetry.say(_searches(update.role, scale, network.loss_scale))
                count_skipped(run, applied, update.role, meter, searching=searching)
                if update.role == GENERATOR:
                    update_averages(run)
            rank_times.end()
            progress.images_seen += config.batch_size
            telemetry.tick(config.batch_size)

            # What is due after it.
            finished = progress.images_seen >= config.total_images
            evaluated = evaluation.measure_if_due(
                telemetry, finished=finished, stopped=lambda: on_any_rank(stop.asked())[0]
            )
            if finished or evaluated or run.is_due(config.log.every_images):
                if run.reads_real and config.stream.on_bad_sample == "skip":
                    telemetry.note({"data/skipped_samples": skipped_samples(run)})
                interval = rank_times.report()
                telemetry.note(interval.metrics)
                telemetry.report(
                    progress, meter.report(), run.learning_rates, waited(streams), interval.slowest
                )
                if interval.stragglers:
                    telemetry.say(interval.stragglers)
            with telemetry.paused():
                if run.is_due(config.log.samples_every_images):
                    show_samples(run, telemetry)
                if run.is_due(config.snapshot.every_images):
                    write_generator(run, run.snapshot_folder())
                if finished or run.is_due(config.ema_snapshot_images):
                    write_ema_snapshot(run)  # before the checkpoint: a resumed run has it, too
                checkpoints.save_if_due(meter, telemetry)
            evaluation.link_best()  # before a complete checkpoint takes an old one's place
            stopping = checkpoints.agree(stop.asked(), telemetry)

        checkpoints.save_if_due(meter, telemetry, last=True)
        evaluation.link_best()
        checkpoints.close(telemetry)
        evaluation.link_best()
        if progress.images_seen < config.total_images:
            why = stop.reason or "asked on another rank"
            telemetry.say(f"stopped at {progress.images_seen:,} images ({why})")
            return progress
        write_final_generator(run, telemetry)
        telemetry.say(f"done after {progress.images_seen:,} images: {run.folder / 'generator'}")
    return progress


def trained_shares(run: Run) -> Iterator[str]:
    """A line for each network that is trained in part."""
    for role, frozen in run.frozen.items():
        shapes = parameter_shapes(run.networks[role].engine).values()
        trained = sum(shape.numel() for shape in shapes)
        settings = exact(run.settings) if run.roles[role].exact else run.settings
        averages = 1 + len(run.other_emas) if role == GENERATOR else 0
        yield frozen.trained_share(role, trained, settings, run.ranks.world_size, averages)


def update_averages(run: Run) -> None:
    """Moves all averages of the generator towards its weights, after its update."""
    batch = run.config.batch_size
    run.ema.update(ema_decay_now(run))
    for width, ema in run.other_emas.items():
        ema.update(power_ema.decay(width, run.progress.images_seen + batch, batch))


def ema_decay_now(run: Run) -> float:
    """Share of the average that this iteration's update keeps."""
    ema, batch, seen = run.config.ema, run.config.batch_size, run.progress.images_seen
    if ema.relative_width is not None:
        return power_ema.decay(ema.relative_width, seen + batch, batch)
    return ema_decay(seen, batch, ema.half_life, ema.ramp_up)


def count_skipped(
    run: Run, applied: bool, role: str, meter: Meter, *, searching: bool = False
) -> None:
    """Counts skipped updates; all ranks have the same count.

    Those of a loss scale that is still `searching` for its height are not in a row.

    Raises:
        DivergedError: `max_skipped` updates of this network were skipped in a row.
    """
    progress = run.progress
    progress.skipped_updates += not applied
    if not applied and searching:
        return
    in_a_row = 0 if applied else progress.skipped_in_a_row.get(role, 0) + 1
    progress.skipped_in_a_row[role] = in_a_row
    if in_a_row >= run.config.max_skipped:
        means = meter.report()
        shown = ", ".join(
            f"{k} {v:.4g}" for k, v in means.items() if k.startswith(("loss", "grad"))
        )
        raise DivergedError(
            f"{in_a_row} updates of the {role} in a row were skipped for non-finite gradients, "
            f"the last one at {progress.images_seen:,} images seen ({shown}). Skipped updates "
            f"change nothing, so the checkpoints in {run.folder / 'checkpoints'} are sound: "
            f"{_remedy(run, role)}, and resume"
        )


def _remedy(run: Run, role: str) -> str:
    scale = run.networks[role].loss_scale
    if scale is None or scale <= 1:
        return "lower the learning rate, or look at the data"
    return (
        f"float16's loss scale stays at {scale:g}, so lower fp16.loss_scale or "
        f"fp16.min_loss_scale in {run.settings.source}, or use bf16"
    )


def _searches(role: str, before: float | None, after: float | None) -> str:
    """What is going on when float16's loss scale was too high for an update."""
    now = f"is now {after:g}" if after != before else f"of {after:g} is lowered at the next"
    return f"an update of the {role} was skipped: float16's loss scale {now}"
