"""The whole run, from top to bottom."""

from contextlib import ExitStack
from pathlib import Path

from sid_scale.config.run import RunConfig
from sid_scale.distill.build import Progress, Run, build_run
from sid_scale.distill.evaluation import OpenEvaluation, no_evaluation
from sid_scale.distill.meter import Meter
from sid_scale.distill.outputs import (
    prepare_folder,
    show_samples,
    write_final_generator,
    write_generator,
)
from sid_scale.distill.resume import (
    checkpoint_writer,
    resume,
    save,
    skipped_samples,
    tell_completed,
)
from sid_scale.distill.step import update_fake_score, update_generator
from sid_scale.distill.telemetry import Telemetry
from sid_scale.errors import SidScaleError
from sid_scale.jobs.lock import locked
from sid_scale.jobs.stop import StopRequests
from sid_scale.ranks import Ranks, limit_waiting, on_any_rank, on_first_rank
from sid_scale.zero import power_ema
from sid_scale.zero.ema import ema_decay


class DivergedError(SidScaleError):
    """Too many updates in a row had to be skipped."""


def train(
    config: RunConfig,
    ranks: Ranks,
    stop: StopRequests | None = None,
    *,
    open_evaluation: OpenEvaluation = no_evaluation,
) -> Progress:
    """Distils a teacher as `config` says, until it is done or asked to stop. Collective.

    Leaves config.yaml, metrics.jsonl, tensorboard/, samples/, checkpoints/, best_generator/ (if it
    is evaluated) and, at the end, generator/ in the run folder.

    Args:
        open_evaluation: called once, when all else is built; makes what carries out the config's
            `evaluation`.

    Raises:
        SidScaleError: something given cannot be used, or updates keep failing.
        LockedError: another run writes to the run folder.
    """
    with ExitStack() as held:
        taken = on_first_rank(lambda: held.enter_context(locked(Path(config.run_dir))))
        return _train(config, ranks, stop or StopRequests(), taken, open_evaluation)


def _train(
    config: RunConfig,
    ranks: Ranks,
    stop: StopRequests,
    told: list[str],
    open_evaluation: OpenEvaluation,
) -> Progress:
    run = build_run(config, ranks)
    limit_waiting(config.collective_timeout_seconds)
    resumed = resume(run)
    evaluation = open_evaluation(run)
    prepare_folder(run)
    writer = checkpoint_writer(config)
    progress, meter = run.progress, Meter(ranks.device, resumed.meters)
    with (
        run.open_data() as data,
        run.open_labels() as labels,
        Telemetry(config, ranks, progress.images_seen) as telemetry,
    ):
        for line in told + resumed.told:
            telemetry.say(line)
        if progress.images_seen == 0:
            show_samples(run, telemetry)
            write_generator(run, run.snapshot_folder())

        telemetry.start_clock(progress.images_seen)
        stopping, _ = on_any_rank(stop.asked(), False)
        while progress.images_seen < config.total_images and not stopping:
            run.set_learning_rates()
            count(run, update_fake_score(run, data, meter), "fake score", meter)
            if config.moves_generator(progress.images_seen):
                count(run, update_generator(run, labels, meter), "generator", meter)
                run.ema.update(decay_now(run))
            progress.images_seen += config.batch_size
            telemetry.tick(config.batch_size)

            finished = progress.images_seen >= config.total_images
            evaluated = evaluation.measure_if_due(
                telemetry, finished=finished, stopped=lambda: on_any_rank(stop.asked())[0]
            )
            if finished or evaluated or run.is_due(config.log.every_images):
                if config.adversarial and config.stream.on_bad_sample == "skip":
                    telemetry.note({"data/skipped_samples": skipped_samples(run)})
                telemetry.report(progress, meter.report(), run.learning_rates)
            if run.is_due(config.log.samples_every_images):
                show_samples(run, telemetry)
            if run.is_due(config.snapshot.every_images):
                write_generator(run, run.snapshot_folder())
            if run.is_due(config.checkpoint.every_images):
                tell_completed(save(run, meter, writer), telemetry)
            evaluation.point_at_best()  # before another that is complete takes an old one's place
            # The one number that ranks exchange for both: whether to stop, and whether all parts
            # of a checkpoint are written.
            stopping, writing = on_any_rank(stop.asked(), writer.is_writing)
            if not writing:
                tell_completed(writer.finish(), telemetry)

        tell_completed(save(run, meter, writer), telemetry)
        evaluation.point_at_best()
        tell_completed(writer.finish(), telemetry)
        evaluation.point_at_best()
        if progress.images_seen < config.total_images:
            why = stop.reason or "asked on another rank"
            telemetry.say(f"stopped at {progress.images_seen:,} images ({why})")
            return progress
        write_final_generator(run, telemetry)
        telemetry.say(f"done after {progress.images_seen:,} images: {run.folder / 'generator'}")
    return progress


def decay_now(run: Run) -> float:
    """Share of the average that this iteration's update keeps."""
    ema, batch, seen = run.config.ema, run.config.batch_size, run.progress.images_seen
    if ema.relative_width is not None:
        return power_ema.decay(ema.relative_width, seen + batch, batch)
    return ema_decay(seen, batch, ema.half_life, ema.ramp_up)


def count(run: Run, applied: bool, network: str, meter: Meter) -> None:
    """Counts skipped updates; all ranks have the same count.

    Raises:
        DivergedError: `max_skipped` updates of this network were skipped in a row.
    """
    progress = run.progress
    in_a_row = 0 if applied else progress.skipped_in_a_row.get(network, 0) + 1
    progress.skipped_in_a_row[network] = in_a_row
    progress.skipped_updates += not applied
    if in_a_row >= run.config.max_skipped:
        means = meter.report()
        told = ", ".join(f"{k} {v:.4g}" for k, v in means.items() if k.startswith(("loss", "grad")))
        raise DivergedError(
            f"{in_a_row} updates of the {network} in a row were skipped for non-finite gradients, "
            f"the last one at {progress.images_seen:,} images seen ({told}). Skipped updates "
            f"change nothing, so the checkpoints in {run.folder / 'checkpoints'} are sound: "
            "lower the learning rate, or look at the data, and resume"
        )
