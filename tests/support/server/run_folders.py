"""Folders of runs as the product writes them, without any training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.config.loading import Scalar, defaults, override, parse
from common.messages.codec import Declaration, Evaluation
from common.metrics import Counts, NoisedCounts
from common.score_histograms import ScoreHistograms, score_histograms
from common.subgroup_counts import SubgroupCounts
from server.reporting.artifacts import save_statement
from server.reporting.counts_file import save_counts
from server.reporting.summary import summarise
from server.reporting.trackers import FileTracker
from server.rounds.closing_evaluation import ClosingEvaluation
from server.rounds.enrollment import EnrolledClient
from server.rounds.loop import RoundResult
from server.rounds.round_record import RoundRecord, figures
from server.run_context import RunContext
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState

# So much noise that its accounting takes milliseconds.
PRIVATE: dict[str, Scalar] = {
    "privacy.noise-multiplier": 40.0,
    "privacy.counts-noise": 40.0,
    "privacy.closing-noise": 20.0,
}
OPEN: dict[str, Scalar] = {"privacy.mechanism": "none"}
HOSTILE = (
    '</script><script>document.title="taken"</script>',
    "\"'><img src=x onerror=alert(1)>",
    '=HYPERLINK("http://example.org")',
    "right\u202eot\u2066left\x1b[31m",
    "n" * 10_000,
)


@dataclass
class RunOnDisk:
    """Facts of a run that is to be written."""

    settings: dict[str, Scalar] = field(default_factory=dict)
    clients: Sequence[str] = ("north", "south")
    classes: Sequence[str] = ("cat", "dog", "owl")
    rounds: int = 4
    planned: int = 4
    failures: dict[int, dict[str, str]] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()
    refusals: dict[str, str] = field(default_factory=dict)
    num_clients: int = 0
    simulated: bool = True
    complete: bool = True
    interrupted: bool = False
    scored: bool = False
    divided: bool = False

    def write(self, folder: Path) -> RunState:
        """Write all files that a run of these facts leaves, and return its state."""
        settings: dict[str, Scalar] = {
            "num-clients": self.num_clients or len(self.clients),
            "num-rounds": self.planned,
            "min-clients": 1,
            "output-dir": str(folder),
            "data.source": "digits" if self.simulated else "clients",
            "data.classes": "" if self.simulated else "a,b,c",
        }
        config = parse(override(defaults(), settings | self.settings))
        enrolled = {
            name: EnrolledClient(Declaration(name, 40 + 10 * at, tuple(self.classes), (8,), "cafe"), at)
            for at, name in enumerate(self.clients)
        }
        number = np.random.default_rng(1).integers(0, 9, (len(self.classes), len(enrolled)))
        context = RunContext(simulated=self.simulated, class_counts=number if self.simulated else None)
        cohorts = [list(enrolled) for _ in range(self.planned)]
        arrays = {"head.weight": np.zeros((len(self.classes), 8), np.float32)}
        state = RunState(config, "f" * 32, enrolled, dict(self.refusals), cohorts, arrays, context)
        state.register()
        for at in range(1, self.rounds + 1):
            state.add(RoundResult(arrays, self._record(at, private=config.private)))
            if self.scored:
                found = figures(Counts(self._confusion(at), 50.0))
                state.rounds[-1]["public_test"] = {"evaluated_model": at, **found}
        if self.complete:
            state.closing = ClosingEvaluation(
                {name: self._closing(at, config.private) for at, name in enumerate(enrolled)}
            )
            state.finish()
        self._save(RunDirectory.create(config), state)
        return state

    def _record(self, at: int, *, private: bool) -> RoundRecord:
        skipped = at in self.skipped
        failures = self.failures.get(at, {})
        noised = NoisedCounts(np.array([60 + 9 * at, 100]), len(self.clients)) if private and not skipped else None
        counts = None if skipped or (private and not self.simulated) else Counts(self._confusion(at), 100.0 / at)
        met = 0 if skipped else len(self.clients) - len(failures)
        return RoundRecord(
            at, met, failures, counts, private, 0.1 * at, 1000.0 + at, 900.0, noised=noised, skipped=skipped
        )

    def _closing(self, at: int, private: bool) -> Evaluation:
        exact = Counts(self._confusion(at), 20.0) if self.simulated or not private else None
        noised = NoisedCounts(self._confusion(at) * 40 - 3) if private else None
        histograms = self._histograms(at) if self.scored else None
        # Of few units one, so that noise hides its accuracy.
        divided = SubgroupCounts(np.array([[700, 90], [410 + at, 130], [3, 1]])) if self.divided else None
        return Evaluation(exact, noised=noised, histograms=histograms, subgroups=divided)

    def _histograms(self, at: int) -> ScoreHistograms:
        rng, labels = np.random.default_rng(at), np.arange(900) % len(self.classes)
        logits = rng.normal(size=(900, len(self.classes))) + 2 * np.eye(len(self.classes))[labels]
        return score_histograms(logits, labels)

    def _confusion(self, at: int) -> np.ndarray:
        size = len(self.classes)
        return np.eye(size, dtype=np.int64) * (5 + at) + np.arange(size**2).reshape(size, size) % 3

    def _save(self, directory: RunDirectory, state: RunState) -> None:
        tracker = FileTracker(directory.path / "rounds.jsonl", state.rounds)
        tracker.stop()
        save_statement(directory, state, None)
        if state.rounds or self.complete:
            directory.write_json("summary.json", summarise(state, {"rounds": 1.25, "total": 2.5}))
        if self.complete or self.interrupted:
            save_counts(directory, state)
        directory.write_json("model/card.json", {"classes": list(self.classes), "model_sha256": "ab" * 32})
