"""What sections of settings are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Alpha = Annotated[float, Field(gt=0.0, le=1.0)]
CalibrationMethod = Literal["none", "temperature", "vector"]


class Section(BaseModel):
    """A group of settings: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def given(key: str, value: object) -> str:
    """A setting as messages show it."""
    return f"{key} not given" if value is None else f"{key}={value}"
