"""The sampling modes of a model: the modalities that each is conditioned on, clean or renoised."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from mf_jax.joint_model import JointModel

JOINT, PARTIAL = "joint", "partial"


@dataclasses.dataclass(frozen=True)
class SamplingMode:
    """A way to sample: which modalities are given and how; the others are generated.

    Attributes:
      name: for `Pipeline.sample`.
      conditions: the modalities that it is conditioned on.
      renoised: at least one of them is needed, and each has noise added to the noise level of its schedule (section 5
        of the paper); otherwise all are needed, and stay clean.
    """

    name: str
    conditions: tuple[str, ...]
    renoised: bool = False

    @property
    def clean(self) -> tuple[str, ...]:
        """The conditions at t = 0."""
        return () if self.renoised else self.conditions

    def check(self, given: Collection[str]) -> None:
        """Checks the names of the conditions that are given.

        Raises:
          ValueError: a missing or superfluous condition.
        """
        for name in given:
            if name not in self.conditions:
                raise ValueError(f"mode {self.name!r} takes no {name}")
        if self.renoised and not given:
            raise ValueError(f"mode {self.name!r} needs {' or '.join(self.conditions)}")
        if missing := [name for name in self.clean if name not in given]:
            raise ValueError(f"mode {self.name!r} needs {' and '.join(missing)}")


def sampling_modes(model: JointModel) -> dict[str, SamplingMode]:
    """The sampling modes of a model by name: "joint" (no condition), the config's modes, and "partial".

    "partial" takes all but the leading modality as renoised conditions; a model with one modality does not have it.
    """
    modes = {JOINT: SamplingMode(JOINT, ())}
    modes |= {name: SamplingMode(name, mode.clean) for name, mode in model.modes.items()}
    if others := tuple(model.modalities)[1:]:
        modes[PARTIAL] = SamplingMode(PARTIAL, others, renoised=True)
    return modes


def conditioned_on(modes: Mapping[str, SamplingMode], clean: Collection[str]) -> SamplingMode:
    """The mode whose clean conditions are exactly these modalities.

    Raises:
      ValueError: there is none.
    """
    for mode in modes.values():
        if not mode.renoised and set(mode.clean) == set(clean):
            return mode
    known = ", ".join(f"{m.name} ({', '.join(m.clean) or 'nothing'})" for m in modes.values() if not m.renoised)
    raise ValueError(f"this model has no mode conditioned on {' and '.join(clean)} alone; its modes are {known}")
