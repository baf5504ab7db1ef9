"""What all settings share: the frozen base class and the constrained numbers. Imports no torch."""

from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of all settings: frozen, unknown fields refused, field docstrings kept for forms."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_true(cls, value: Any, info: ValidationInfo) -> Any:
        """`n_grpo_steps: true` would read as 1."""
        if isinstance(value, bool) and bool not in _kinds(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"is {str(value).lower()}, which is neither a number nor a text: give one")
        return value

    OUTSIDE_KEY: ClassVar[frozenset[str]] = frozenset()
    """Fields that change nothing of what a stage publishes."""
    ROUNDING: ClassVar[frozenset[str]] = frozenset()
    """Fields that change at most the order of sums in floating point. They are in no key, so that a run that was too
    large for its memory can go on under smaller ones; it then says that it is not bit-equal."""

    def key_settings(self) -> dict[str, Any]:
        """The settings as they enter a stage key: JSON values, without what cannot change a result."""
        left_out = self.OUTSIDE_KEY | self.ROUNDING
        dumped = self.model_dump(mode="json")
        return {name: _in_key(getattr(self, name), value) for name, value in dumped.items() if name not in left_out}

    def rounding_settings(self, prefix: str = "") -> dict[str, Any]:
        """The `ROUNDING` fields of these settings and of those within, by dotted name."""
        found = {f"{prefix}{name}": getattr(self, name) for name in sorted(self.ROUNDING)}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Config):
                found |= value.rounding_settings(f"{prefix}{name}.")
        return found


def _in_key(value: Any, dumped: Any) -> Any:
    return value.key_settings() if isinstance(value, Config) else dumped


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation such as `list[int] | bool | None` names, Any for what cannot be told."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))
