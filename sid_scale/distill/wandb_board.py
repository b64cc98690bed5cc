"""A run on Weights & Biases, by the package wandb (the extra `wandb`).

All attempts of a run continue one run there: its id is kept in the run folder. The x axis of every
metric is `images_seen`. What a resumed run does again is shown again at the same images seen:
wandb's counterpart of TensorBoard's purging, `resume_from`, is in beta and cannot work offline.
wandb drops rows whose step goes back. Its step therefore only counts what was logged, over all
attempts; the run folder keeps it too, for what is offline.

Training waits for no server: a thread of this process hands over what is logged, wandb's process
uploads it. Whatever fails there once the run has begun is one line in its log.
"""

import dataclasses
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
from torch import Tensor

from sid_scale.atomic import atomic_write
from sid_scale.config.groups import WandbConfig
from sid_scale.config.networks import named_as_on_hub
from sid_scale.config.parse import ConfigError
from sid_scale.config.run import RunConfig

IDENTITY = "wandb.json"  # in the run folder
MODES = ("online", "offline", "disabled")
# That a run waits for the server at its start, and at its end; other ranks wait for it meanwhile.
PATIENCE_SECONDS = 60.0
FAILED_SECONDS = 10.0  # that a run which an error ends waits for wandb
STEP_AXIS = "images_seen"
MOST_STEPS = 2**53  # of a run; what is beyond stands in a damaged file
MOST_FAULTS = 3  # of the package in a row, then nothing more is handed to it

_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def wandb_mode(settings: WandbConfig) -> str:
    """online, offline or disabled.

    Raises:
        ConfigError: it is left to WANDB_MODE, which has another value.
    """
    mode = settings.mode or os.environ.get("WANDB_MODE") or "online"
    if mode not in MODES:
        raise ConfigError(f"log.wandb.mode: WANDB_MODE={mode} is none of {', '.join(MODES)}")
    return mode


def check_wandb(config: RunConfig) -> None:
    """Looks whether the run can log as `log.wandb` says, without asking a server.

    Raises:
        ConfigError: wandb is not installed, has no login for its server, or refuses a name.
    """
    settings = config.log.wandb
    if settings is None or (mode := wandb_mode(settings)) == "disabled":
        return
    wandb = _package()
    try:
        wandb.setup(settings=wandb.Settings(silent=True, mode=mode, project=settings.project))
        has_login = mode == "offline" or wandb.login(prompt=False, verify=False)
    except Exception as error:  # of wandb's own kinds, and pydantic's
        raise ConfigError(f"log.wandb: {_in_one_line(error)}") from error
    if not has_login:
        raise ConfigError(
            "log.wandb: nobody is logged in to Weights & Biases here: run `wandb login`, set "
            "WANDB_API_KEY, or take log.wandb.mode=offline and `wandb sync` later"
        )


class WandbBoard:
    """The run on Weights & Biases, see `Board`."""

    def __init__(self, config: RunConfig, say: Callable[[str], None]):
        """Goes on with the run, or starts it. Where the server does not answer, this attempt is
        logged offline.

        Args:
            say: logs one line.
        """
        settings, self._folder = config.log.wandb, Path(config.run_dir)
        assert settings is not None
        self._say = say
        self._wandb, self._failed = _package(), False
        self._patience = min(PATIENCE_SECONDS, config.collective_timeout_seconds / 4)
        self._id, self._step = _read_identity(self._folder)
        self._run: Any = None
        try:
            run = self._start(config, settings)
            self._step = max(self._step, run.step)
            run.define_metric(STEP_AXIS)
            run.define_metric("*", step_metric=STEP_AXIS)
        except Exception as error:
            say(f"wandb: no run could be started, there will be none: {_in_one_line(error)}")
            _end_service()
            return
        say(f"wandb: {run.settings.sync_dir if run.offline else run.url}")
        self._run = run
        self._queue: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._hand_over, name="wandb", daemon=True)
        self._thread.start()

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        self._log(values, images_seen)

    def image(self, name: str, image: Tensor, images_seen: int) -> None:
        pixels = image.permute(1, 2, 0).numpy()
        self._log({name: pixels}, images_seen)

    def close(self, *, failed: bool) -> None:
        if self._run is None:
            return
        self._failed = failed
        self._queue.put(None)
        # An error is to be told, and other ranks to be ended: what is left is on the disk.
        self._thread.join(FAILED_SECONDS if failed else 2 * self._patience)
        if self._thread.is_alive():
            self._say("wandb: its process does not answer and is ended; `wandb sync` completes it")
            _end_service()

    def _log(self, values: Mapping[str, Any], images_seen: int) -> None:
        if self._run is not None:
            self._queue.put({STEP_AXIS: images_seen, **values})

    def _start(self, config: RunConfig, settings: WandbConfig) -> Any:
        self._keep_identity()
        mode = wandb_mode(settings)
        try:
            return self._init(config, settings, mode)
        except Exception as error:
            if mode == "offline":
                raise
            self._wandb.teardown()  # its process holds the id
            run = self._init(config, settings, "offline")
            self._say(
                f"wandb: the server cannot be used ({_in_one_line(error)}); this attempt is logged "
                f"offline: `wandb sync {run.settings.sync_dir}`"
            )
            return run

    def _init(self, config: RunConfig, settings: WandbConfig, mode: str) -> Any:
        return self._wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or self._folder.resolve().name,
            id=self._id,
            resume="allow",
            mode=mode,
            dir=str(self._folder),
            config=dataclasses.asdict(named_as_on_hub(config)),
            allow_val_change=True,  # some settings may change on resume
            settings=self._wandb.Settings(
                console="off",  # standard output stays the run's own
                silent=True,
                save_code=False,
                init_timeout=self._patience,
                finish_timeout=self._patience,
            ),
        )

    def _hand_over(self) -> None:
        """What the thread does."""
        faults = 0
        while (values := self._queue.get()) is not None:
            if faults == MOST_FAULTS:
                continue
            try:
                step, self._step = self._step, self._step + 1
                self._keep_identity()  # before: whatever happens, no step is used twice
                self._run.log(self._converted(values), step=step, commit=True)
                faults = 0
            except Exception as error:  # of wandb, a socket, the disk: none is worth the run
                faults += 1
                more = "; it gets no more" if faults == MOST_FAULTS else ""
                self._say(f"wandb: {_in_one_line(error)}{more}")
        try:
            self._run.finish(exit_code=1 if self._failed else 0)
            self._wandb.teardown()  # the end of its process: only then are its files whole
        except Exception as error:
            self._say(f"wandb: {_in_one_line(error)}")

    def _converted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value if isinstance(value, int | float) else self._wandb.Image(value)
            for name, value in values.items()
        }

    def _keep_identity(self) -> None:
        with atomic_write(self._folder / IDENTITY) as partial:
            partial.write_text(json.dumps({"id": self._id, "next_step": self._step}) + "\n")


def _package() -> Any:
    """The package wandb.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    if not hasattr(wandb, "init"):  # a folder of that name is importable, too
        raise ConfigError(_MISSING)
    return wandb


_MISSING = (
    "log.wandb: the package wandb is not installed: `pip install 'sid-scale[wandb]'`, or leave "
    "log.wandb out"
)


def _read_identity(folder: Path) -> tuple[str, int]:
    """Id and next step of the run that a folder is logged to; new ones for a new folder, or where
    the file is damaged."""
    new = secrets.token_hex(4), 0
    try:
        kept = json.loads((folder / IDENTITY).read_text())
        name, step = kept["id"], kept["next_step"]
        is_sound = _ID.fullmatch(name) and isinstance(step, int) and 0 <= step < MOST_STEPS
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return new
    return (name, step) if is_sound else new


def _end_service() -> None:
    """Ends wandb's process: else this one would wait for it at its own end."""
    for child in psutil.Process().children():
        if child.name().startswith("wandb-core"):
            child.kill()


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
