"""What a study asks of a worker: one stage, for whom, and how the two find each other in Prefect."""

from pydantic import BaseModel, Field

from alignment_core.stage import StageSpec

STAGE_KEY = "stage-key:"
"""Tag of the flow runs that compute a stage; the key follows."""
STUDY = "study:"
STAGE = "stage:"


class StageRequest(BaseModel):
    """Parameters of the flow `stage`."""

    spec: StageSpec = Field(description="The stage: its settings, its inputs, its key and the code that made the key.")
    study: str = Field(description="Name of the study, which is its experiment in MLflow.")
    model: str = Field(default="", description="The model the study starts from, for people.")
    parent_run: str = Field(default="", description="MLflow's run that the stage's run is nested under.")
    annotations: dict[str, str] = Field(default_factory=dict, description="For the manifest of the artifact.")
    reason: str = Field(default="", description="Why the stage is computed.")
    commit: str = Field(default="", description="Commit of the code that asks.")

    def tags(self) -> list[str]:
        """By which the flow run is found."""
        return ["alignflow", f"{STAGE_KEY}{self.spec.key}", f"{STUDY}{self.study}", f"{STAGE}{self.spec.stage}"]

    def name(self) -> str:
        """Of the flow run: the study, its model, and the stage's label, which says method and seed."""
        return " ".join(filter(None, (self.study, self.model.rstrip("/").rpartition("/")[2], self.spec.label)))


def progress_key(key: str) -> str:
    """Key of the artifact in Prefect that shows how far the stage with this key is."""
    return f"stage-{key}"
