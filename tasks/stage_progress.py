"""How far a stage is, told through Prefect's server: by the worker that runs it, to whoever waits for it.

The last point goes into a progress artifact, what the stage says into the logs of the flow run.
"""

import logging
import threading
import time
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterTimestamp,
)
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort, LogSort

from alignment_core.events import Event
from tasks.progress import HEADLINE, LogListener, headline
from tasks.stage_request import progress_key

SAID = "alignflow.said"
"""Logger of what stages say; the rest of a worker's lines is of no interest to the study."""
PERIOD = 5.0
"""Seconds between two updates of the artifact."""

logger = logging.getLogger("alignflow")
said = logging.getLogger(SAID)


class StageListener(LogListener):
    """Logs what a stage says and shows its last point in Prefect, from a thread: training waits for no server."""

    PERIOD = 60.0

    def __init__(self, key: str, flow_run: str) -> None:
        super().__init__()
        self._key, self._flow_run = progress_key(key), flow_run
        self._point: Event | None = None
        self._shown: Event | None = None
        self._artifact: UUID | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)

    def __enter__(self) -> "StageListener":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join(timeout=PERIOD)

    def event(self, label: str, event: Event) -> None:
        """What is said is logged; a point is shown at the next update."""
        if event.kind == "say":
            said.info("%s", event.name)
            return
        if event.kind == "point":
            self._point = event
        super().event(label, event)

    def _work(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(PERIOD)
            point = self._point
            if point is None or point is self._shown:
                continue
            try:
                self._show(point)
                self._shown = point
            except Exception as error:  # a server that is away, in any of its client's ways to say so
                logger.warning("progress is not shown in Prefect: %s", error)

    def _show(self, point: Event) -> None:
        share = 100.0 * point.step / point.total if point.total else 0.0
        text = f"step {point.step}/{point.total or '?'}  {headline(point.metrics)}"
        watched = {name: point.metrics[name] for name in HEADLINE if name in point.metrics}
        facts = {"point": point.model_copy(update={"metrics": watched}).model_dump_json(exclude_defaults=True)}
        with get_client(sync_client=True) as client:
            if self._artifact is None:
                wanted = ArtifactCreate(
                    key=self._key,
                    type="progress",
                    data=share,
                    description=text,
                    metadata_=facts,
                    flow_run_id=UUID(self._flow_run),
                )
                self._artifact = client.create_artifact(wanted).id
            else:
                client.update_artifact(self._artifact, ArtifactUpdate(data=share, description=text, metadata_=facts))


class StageNews:
    """What a flow run of a stage has told since it was last asked."""

    def __init__(self, flow_run: UUID) -> None:
        self._flow_run = flow_run
        self._since: datetime | None = None
        self._read: set[UUID] = set()
        self._point = ""

    def read(self, client: SyncPrefectClient) -> list[Event]:
        """New lines and, if it changed, the last point."""
        return [*self._lines(client), *self._progress(client)]

    def _lines(self, client: SyncPrefectClient) -> list[Event]:
        since = LogFilterTimestamp(after_=self._since) if self._since is not None else None
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self._flow_run]), timestamp=since)
        logs = client.read_logs(wanted, limit=200, sort=LogSort.TIMESTAMP_ASC)
        logs = [one for one in logs if one.id not in self._read]
        if logs:
            self._since = logs[-1].timestamp
            self._read |= {one.id for one in logs}
        return [Event(kind="say", step=0, time=time.time(), name=one.message) for one in logs if one.name == SAID]

    def _progress(self, client: SyncPrefectClient) -> list[Event]:
        found = read_progress(client, [self._flow_run])
        text = (found[0].metadata_ or {}).get("point", "") if found else ""
        if not text or text == self._point:
            return []
        self._point = text
        return [Event.model_validate_json(text)]


def read_progress(client: SyncPrefectClient, flow_runs: list[UUID]) -> list[Artifact]:
    """The progress artifacts of stages that these flow runs wrote, newest first."""
    return client.read_artifacts(
        artifact_filter=ArtifactFilter(
            key=ArtifactFilterKey(like_=progress_key("")), flow_run_id=ArtifactFilterFlowRunId(any_=flow_runs)
        ),
        sort=ArtifactSort.UPDATED_DESC,
    )
