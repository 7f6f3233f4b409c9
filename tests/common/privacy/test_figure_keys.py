"""A figure that was kept is found under everything that it depends on, and under nothing less.

Drives `common.privacy.accounting`, `common.privacy.calibration`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.privacy import accounting, calibration
from common.privacy.accounting import FIGURES, spent_by
from common.privacy.calibration import calibrate
from common.privacy.events import CountsEvent, DpSgdEvent
from common.system import figure_cache
from common.system.figure_cache import FigureCache

TRAINED = DpSgdEvent(0.5, 2.0, 3)


class Asked(dict[str, list[object]]):
    """The keys that a cache was asked for, by kind."""

    def get_or_compute(self, kind: str, key: object, compute: Callable[[], float], *, bypass: bool = False) -> float:
        del compute, bypass
        self.setdefault(kind, []).append(key)
        return 1.0


def keys_of_figures(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    with monkeypatch.context() as patch:
        patch.setattr(FigureCache, "get_or_compute", lambda _, *args, **more: found.get_or_compute(*args, **more))
        for event in (TRAINED, CountsEvent(4.0, 1), *(replace(TRAINED, **{name: 7}) for name in vars(TRAINED))):
            spent_by([event], delta=1e-5)
        spent_by([TRAINED, TRAINED], delta=1e-5)
        spent_by([TRAINED], delta=1e-6)
        patch.setattr(accounting, "DISCRETIZATION", 1e-3)
        spent_by([TRAINED], delta=1e-5)
    return found


def test_every_figure_is_kept_under_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = keys_of_figures(monkeypatch)

    histories = 2 + len(vars(TRAINED)) + 1
    assert len(set(found["rdp"])) == histories + 1, "another delta is another figure; RDP knows no grid"
    assert len(set(found["pld"])) == histories + 2, "another delta or another grid is another figure"


def test_every_calibration_is_kept_under_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found, given = Asked(), {"sample_rate": 0.5, "steps": 10, "target_epsilon": 4.0, "delta": 1e-5}
    other = {"sample_rate": 0.25, "steps": 20, "target_epsilon": 2.0, "delta": 1e-6, "beside": (CountsEvent(4.0, 1),)}
    other |= {"noise_shares": 3}
    FIGURES.clear()  # what was calibrated in this process is not asked for again
    with monkeypatch.context() as patch:
        patch.setattr(FigureCache, "get_or_compute", lambda _, *args, **more: found.get_or_compute(*args, **more))
        for changed in ({}, *({name: value} for name, value in other.items())):
            calibrate(**given | changed)  # type: ignore[arg-type]
        # A process has one sampler, and the file outlives it.
        FIGURES.clear()
        patch.setattr(calibration, "CURRENT_SAMPLER", 2)
        calibrate(**given)  # type: ignore[arg-type]
    FIGURES.clear()

    assert len(set(found["noise"])) == 1 + len(other) + 1


def test_figures_of_another_kind_or_other_libraries_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path))
    found = [FigureCache().get_or_compute("pld", 1, lambda: 1.0), FigureCache().get_or_compute("rdp", 1, lambda: 2.0)]
    with monkeypatch.context() as patch:
        patch.setattr(figure_cache, "_versions", lambda: ("other", "versions"))
        found.append(FigureCache().get_or_compute("pld", 1, lambda: 3.0))
    monkeypatch.setattr(figure_cache, "_FORMAT", figure_cache._FORMAT + 1)
    found.append(FigureCache().get_or_compute("pld", 1, lambda: 4.0))

    assert found == [1.0, 2.0, 3.0, 4.0]
