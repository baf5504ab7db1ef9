"""What all settings share: the frozen base class and the constrained numbers. Imports no torch."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of all settings: frozen, unknown fields refused, field docstrings kept for forms."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def key_settings(self) -> dict[str, Any]:
        """The settings as they enter a stage key: JSON values, without what says only where a thing lies.

        Sections decide for themselves what of them is left out.
        """
        settings = self.model_dump(mode="json")
        for name in type(self).model_fields:
            section = getattr(self, name)
            if isinstance(section, Config):
                settings[name] = section.key_settings()
        return settings
