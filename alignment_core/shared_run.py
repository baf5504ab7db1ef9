"""A stage under way beside a shared store: its number there, its uploads, and what it goes on from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment_core.attempts import Attempt, attempting
from alignment_core.checkpoint_folders import complete_checkpoints
from alignment_core.remote import RemoteFolder
from alignment_core.shared_checkpoints import CheckpointUploader, fetch_further, remove_shared_work

END_SECONDS, FAILED_END_SECONDS = 30.0, 2.0
"""Longest wait for the file that is on its way when a stage ends, well or not."""


class SharedRun:
    """What a stage under way has to do with the shared store: it is asked at every step, and given each checkpoint."""

    def __init__(self, remote: RemoteFolder, attempt: Attempt, work: Path) -> None:
        """work: the stage's work folder."""
        self.remote, self.attempt, self.work = remote, attempt, work
        self.uploader = CheckpointUploader(remote, attempt, work / "upload")

    def at_boundary(self, step: int) -> list[str]:
        """Raise Superseded if it is known that another attempt holds the stage; lines to say otherwise."""
        self.attempt.step = max(step, self.attempt.step)
        self.attempt.at_boundary()
        return self.uploader.lines()

    def saved(self, checkpoint: Path, events: Path, last: bool) -> str:
        """Take a checkpoint; last: the stage stops here, so it is uploaded now, in bounded time. What to tell of it."""
        self.uploader.offer(checkpoint, events, urgent=last)
        if last and not self.uploader.flush():
            return "its last checkpoint could not be uploaded in time: only this root can go on from it"
        return ""

    def fetch_further(self, local_step: int, say: Callable[[str], None]) -> None:
        """Bring a further checkpoint than the folder has, if another attempt uploaded one; `say` tells of it."""
        step = fetch_further(self.remote, self.attempt.name, self.work, local_step, say)
        if step is not None:
            say(f"goes on from step {step}, which another attempt uploaded")

    def stop(self) -> None:
        """Upload nothing more."""
        self.uploader.stop(FAILED_END_SECONDS)

    def published(self) -> None:
        """The artifact is there: what was uploaded on the way goes."""
        self.uploader.stop(END_SECONDS)
        remove_shared_work(self.remote, self.attempt.name)


@contextmanager
def shared_run(
    remote: RemoteFolder, name: str, root: Path, say: Callable[[str], None], label: str = ""
) -> Iterator[SharedRun]:
    """Hold a stage among all hosts (`alignment_core.attempts.attempting`), its uploads ended with the block."""
    with attempting(remote, name, root, say, label=label) as attempt:
        run = SharedRun(remote, attempt, root / ".work" / name)
        try:
            yield run
        finally:
            run.stop()


def latest_step(work: Path) -> int:
    """Step of the newest complete checkpoint in a work folder; -1 if there is none."""
    complete = complete_checkpoints(work / "checkpoints")
    return int(complete[-1].name) if complete else -1
