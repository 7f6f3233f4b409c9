"""The settings of a run as one frozen typed model.

`common.config.loading.parse` makes it, and fills in the settings that were left empty.
"""

from pydantic import model_validator

from common.config.listed_values import BALANCED, listed_weights
from common.config.project import default_steps
from common.config.run_fields import RunFields
from common.config.secure_sum import SecureSum, gradient_sum_conflicts, refuse_conflicts
from common.errors import ConfigError, PrivacyError
from common.models.names import BackboneSpec
from common.models.tuning import TUNINGS, parse_tuning
from common.privacy.batched_gradients import AUTO
from common.privacy.mechanisms.contract import Mechanism
from common.privacy.mechanisms.registry import MECHANISMS, mechanism_named
from common.privacy.plan import PrivacyPlan
from common.privacy.public_constants import PublicConstants
from common.strategies import STRATEGIES, UNIFORM_STRATEGIES


class RunConfig(RunFields):
    """The settings of a whole run, checked against each other."""

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> "RunConfig":
        model, training = self.model, self.training
        if model.backbone == "cnn" and (self.tuning != "full" or model.head != "linear" or model.personal):
            raise ValueError(
                "model.backbone='cnn' is trained from scratch, with model.tuning='full' and model.head='linear'; got "
                f"model.tuning={model.tuning!r}, model.head={model.head!r}, model.personal={model.personal!r}"
            )
        trains_head_only = not parse_tuning(self.tuning)[0].trains_backbone
        others = ", ".join(name for name, row in TUNINGS.items() if row.trains_backbone)
        if trains_head_only and training.rotation_weight:
            raise ValueError(
                "training.rotation-weight shapes the backbone, and model.tuning='head' leaves it frozen: use one of "
                f"{others}"
            )
        if trains_head_only and model.personal:
            raise ValueError(
                f"model.personal={model.personal!r} with model.tuning='head' leaves nothing that travels: use one of "
                f"{others}"
            )
        if model.backbone == "cnn" and training.rotation_weight:
            raise ValueError("training.rotation-weight goes with pretrained backbones, not with model.backbone='cnn'")
        weights, classes = listed_weights(training.class_weights), self.data.class_names
        if weights and classes and len(weights) != len(classes):
            raise ValueError(
                f"training.class-weights has {len(weights)} weights, and data.classes names {len(classes)} classes"
            )
        if training.optimizer == "adamw" and training.momentum:
            raise ValueError("training.momentum belongs to training.optimizer='sgd'; adamw has its own")
        needs_exact_loss = STRATEGIES[self.strategy.name].needs_exact_loss
        if self.private and needs_exact_loss:
            raise ValueError(
                f"strategy.name={self.strategy.name!r} needs each client's exact loss, which privacy.mechanism="
                f"{self.privacy.mechanism!r} never releases: use another strategy, or privacy.mechanism='none'"
            )
        self._check_privacy()
        self._check_evaluation()
        self._check_method()
        self._check_gradients()
        if self.privacy.aggregation == "secure":
            self._check_secure()
        elif self.privacy.strict_rows:
            raise ValueError(
                "privacy.strict-rows looks at rows of secure sums, and privacy.aggregation='plain' shows the server "
                "each client's update: set privacy.aggregation='secure', or leave privacy.strict-rows at false"
            )
        if needs_exact_loss and (training.optimizer != "sgd" or training.momentum):
            raise ValueError(
                f"strategy.name={self.strategy.name!r} reads how far a client moved as learning rate times "
                "gradient: it needs training.optimizer='sgd' and training.momentum=0"
            )
        return self

    def _check_privacy(self) -> None:
        mechanism, metrics = self.mechanism, self.metrics
        if mechanism.needs_uniform_average and self.strategy.name not in UNIFORM_STRATEGIES:
            raise ValueError(
                f"strategy.name={self.strategy.name!r} does not go with privacy.mechanism={mechanism.name!r}, whose "
                f"noise is for a uniform average: use one of {', '.join(UNIFORM_STRATEGIES)}"
            )
        if self.privacy.unit not in mechanism.units:
            fitting = " or ".join(repr(other.name) for other in MECHANISMS.values() if self.privacy.unit in other.units)
            raise ValueError(f"privacy.unit={self.privacy.unit!r} goes with privacy.mechanism={fitting}")
        if metrics not in mechanism.metrics:
            fitting = " or ".join(repr(other.name) for other in MECHANISMS.values() if metrics in other.metrics)
            raise ValueError(
                f"privacy.metrics={metrics!r} goes with privacy.mechanism={fitting}: "
                f"{mechanism.why_not_metrics(metrics)}"
            )
        if self.stopping.max_epsilon is not None and not self.private:
            raise ValueError("stopping.max-epsilon limits what a privacy mechanism costs, and privacy.mechanism='none'")
        if bool(self.data.subgroup_column) != bool(self.data.subgroup_names):
            raise ValueError("data.subgroup-column and data.subgroups go together: give both or neither")
        if metrics == "none" and (self.releases_histograms or self.data.subgroup_names):
            asked = "privacy.closing='full'" if self.releases_histograms else "data.subgroups"
            raise ValueError(f"{asked} adds to closing counts, and privacy.metrics='none' lets none leave")
        if self.releases_histograms and len(self.data.class_names) < 2:
            raise ValueError("privacy.closing='full' has a histogram for each class: name the classes in data.classes")
        if metrics == "none" and (self.stopping.patience or self.stopping.keep == "best"):
            raise ValueError(
                "stopping.patience and stopping.keep='best' choose by the clients' counts, and privacy.metrics='none' "
                "lets none leave"
            )
        if self.private and metrics == "exact" and (self.stopping.patience or self.stopping.keep == "best"):
            raise ValueError(
                "stopping.patience and stopping.keep='best' would choose by exact counts, which no epsilon covers: use "
                "privacy.metrics='private'"
            )
        if self.min_clients is not None and self.min_clients > self.cohort_size:
            raise ValueError(
                f"min-clients={self.min_clients} but a round has only {self.cohort_size} clients: lower it, or leave "
                "it empty for four fifths of them"
            )
        if mechanism.noise_at_server and self.max_update_norm is not None:
            raise ValueError(
                f"max-update-norm leaves whole updates out; with privacy.mechanism={mechanism.name!r} they are clipped "
                "instead, by privacy.clipping-norm"
            )

    def _check_secure(self) -> None:
        wrong = [
            (self.strategy.name not in UNIFORM_STRATEGIES, "strategy.name", f"use {' or '.join(UNIFORM_STRATEGIES)}"),
            (self.max_update_norm is not None, "max-update-norm", "leave it empty"),
            (self.training.update_bits != 32, "training.update-bits", "leave it at 32"),
            (bool(self.model.personal), "model.personal", "leave it empty"),
            (self.cohort_size != self.num_clients, "client-fraction", "leave it at 1, as every client takes part"),
            (self.round_retries != 0, "round-retries", "set it to 0, as an aborted round is never repeated"),
            (not self.mechanism.secure_sum, "privacy.mechanism", "use one that a secure sum is built for"),
        ]
        if self.sums_gradients:
            wrong += gradient_sum_conflicts(self.training, self.batch_size, self.local_epochs)
        refuse_conflicts(wrong)
        try:
            self.secure  # noqa: B018 -- refuses numbers that no secure sum can keep
        except ConfigError as error:
            raise ValueError(str(error)) from None

    def _check_evaluation(self) -> None:
        every = self.evaluation.every
        num_rounds = 1 if self.takes_statistics else self.num_rounds
        if every > num_rounds:
            raise ValueError(f"evaluation.every={every} counts none of num-rounds={num_rounds}: use a smaller one")
        if every > 1 and STRATEGIES[self.strategy.name].needs_exact_loss:
            raise ValueError(
                f"strategy.name={self.strategy.name!r} needs each client's loss in every round: leave "
                "evaluation.every at 1"
            )

    def _check_method(self) -> None:
        methods = self.mechanism.methods
        if self.training.method not in (None, *methods):
            fitting = " or ".join(repr(name) for name, row in MECHANISMS.items() if self.training.method in row.methods)
            raise ValueError(f"training.method={self.training.method!r} goes with privacy.mechanism={fitting}")
        if not self.takes_statistics:
            return
        training = self.training
        # Each of these would be ignored, or would do something else to sums than to a model.
        if not self.caches_features or self.model.head != "linear":
            raise ValueError(
                "training.method='statistics' makes a linear head on stored features: use model.tuning='head', "
                "model.head='linear' and no training.augmentation"
            )
        needed = {
            "strategy.name": (self.strategy.name, "FedAvg"),
            "training.update-bits": (training.update_bits, 32),
            "training.class-weights": (training.class_weights, ""),
            "model.initial": (self.model.initial, ""),
            "max-update-norm": (self.max_update_norm, None),
        }
        for key, (value, fits) in needed.items():
            if value != fits:
                raise ValueError(f"{key}={value!r} does not go with training.method='statistics': use {fits or ''!r}")

    def _check_gradients(self) -> None:
        named = self.training.gradients
        if named == AUTO:
            return
        if not self.mechanism.clips_units or self.takes_statistics:
            fitting = " or ".join(
                repr(name) for name, row in MECHANISMS.items() if row.clips_units and "rounds" in row.methods
            )
            raise ValueError(
                f"training.gradients={named!r} goes with privacy.mechanism={fitting}, which clips gradients"
            )
        if self.needs_no_torch:
            raise ValueError(
                f"training.gradients={named!r} is for networks, and a linear head on stored features needs no torch: "
                "leave it at 'auto', or tune more than the head (model.tuning)"
            )

    @property
    def takes_statistics(self) -> bool:
        """True if the head follows from sums over features, in one round."""
        return (self.training.method or self.mechanism.methods[0]) == "statistics"

    @property
    def metrics(self) -> str:
        """Way in which clients' counts leave, as set or by the mechanism."""
        return self.privacy.metrics or self.mechanism.metrics[0]

    @property
    def tuning(self) -> str:
        """The value of `model.tuning`, with the default of the backbone for an empty one."""
        return self.model.tuning or ("full" if self.model.backbone == "cnn" else "head")

    @property
    def cnn_depth(self) -> int | None:
        """Number of convolutions of `cnn`, None where it follows from the images' size."""
        # Clipped gradients cannot diverge, and the normalised network learns more slowly from them.
        return self.model.cnn_depth or (2 if self.mechanism.clips_units else None)

    @property
    def backbone_spec(self) -> BackboneSpec:
        """The backbone with the weights and image size that the run asks for."""
        model = self.model
        return BackboneSpec(model.backbone, model.weights, model.weights_sha256, self.data.image_size, self.seed)

    @property
    def caches_features(self) -> bool:
        """True if clients train on features that a frozen backbone computed once."""
        return not parse_tuning(self.tuning)[0].trains_backbone and not self.training.augmentation

    @property
    def needs_no_torch(self) -> bool:
        """True if NumPy alone can train, as for a linear head on cached features."""
        return self.caches_features and self.model.head != "mlp"

    @property
    def open_kind(self) -> str:
        """The row of `[tool.bract.open-values]` for the trained part and the optimizer."""
        if self.takes_statistics:
            return "statistics"
        if self.model.backbone == "cnn":
            part = "scratch"
        elif self.tuning == "head":
            part = "head" if self.model.head != "mlp" else "mlp"
        else:
            part = "backbone"
        return f"{part}-{self.training.optimizer}"

    @property
    def batch_size(self) -> int | None:
        """Expected number of images in a step, None for all of them."""
        written = self.training.batch_size
        if written is None and not self._steps_follow_from_plan and not self.sums_gradients:
            return default_steps()["batch-size"]
        return written if isinstance(written, int) else None

    @property
    def local_epochs(self) -> int:
        """Passes over a client's images in a round.

        A private head's plan may decide them instead.
        """
        default = 1 if self.batch_size is None else default_steps()["local-epochs"]
        return self.training.local_epochs or default

    @property
    def rate_by_rule(self) -> bool:
        """True if each client's learning rate follows from its privacy plan."""
        return self.training.learning_rate is None and self._steps_follow_from_plan

    @property
    def clip_by_rule(self) -> bool:
        """True if the clip bound of a client's update follows from the plan."""
        head = self.open_kind.startswith("head-")
        return self.privacy.clipping_norm is None and self.mechanism.clips_clients and head

    @property
    def _steps_follow_from_plan(self) -> bool:
        in_rounds = self.mechanism.clips_units and not self.takes_statistics
        return self.needs_no_torch and in_rounds and self.training.optimizer == "sgd"

    @property
    def sums_gradients(self) -> bool:
        """True if clients send gradient sums and the server makes the steps."""
        return self.privacy.aggregation == "secure" and self.mechanism.clips_units and not self.takes_statistics

    @property
    def private(self) -> bool:
        """True if the clients or the server add noise."""
        return self.mechanism.private

    @property
    def is_local_dp(self) -> bool:
        """True if each client adds its own noise."""
        return self.mechanism.noise_at_client

    @property
    def counts_labels(self) -> bool:
        """True if class weights follow from noised counts of each client's labels."""
        return self.mechanism.clips_units and self.training.class_weights == BALANCED

    @property
    def releases_histograms(self) -> bool:
        """True if histograms of scores and confidence leave with the closing counts."""
        return self.privacy.closing == "full"

    @property
    def mechanism(self) -> Mechanism:
        """The privacy mechanism of the run."""
        return mechanism_named(self.privacy.mechanism, summed=self.privacy.aggregation == "secure")

    @property
    def public_constants(self) -> PublicConstants:
        """The settings that privacy plans follow from."""
        privacy = self.privacy
        if privacy.max_grad_norm is None or (privacy.clipping_norm is None and not self.clip_by_rule):
            raise PrivacyError("the clip bounds are not filled in: build a RunConfig with common.config.loading.parse")
        return PublicConstants(
            target_epsilon=privacy.target_epsilon,
            noise_multiplier=privacy.noise_multiplier,
            delta=privacy.delta,
            unit=privacy.unit,
            max_grad_norm=privacy.max_grad_norm,
            clipping_norm=privacy.clipping_norm,
            metrics=self.metrics,
            counts_noise=privacy.counts_noise,
            closing_noise=privacy.closing_noise,
            histogram_classes=len(self.data.class_names) if self.releases_histograms else None,
            subgroups=self.data.subgroup_names,
            counted_every=self.evaluation.every,
            counted_rounds=min(self.participations, self.num_rounds // self.evaluation.every),
            batch_size=self.batch_size,
            local_epochs=self.local_epochs,
            steps_by_rule=self._steps_follow_from_plan
            and self.training.local_epochs is None
            and self.batch_size is None,
            rate_by_rule=self.rate_by_rule,
            momentum=self.training.momentum,
            balanced=self.counts_labels,
            num_clients=self.num_clients,
            cohort_size=self.cohort_size,
            num_rounds=self.num_rounds,
            participations=self.participations,
            noise_shares=self.secure.honest if self.secure is not None and self.private else 0,
        )

    def plan(self, num_units: int) -> PrivacyPlan:
        """Return the plan that protects a client of `num_units` declared units.

        Raises:
            ConfigError: The settings admit no plan for so many units.
            PrivacyError: The mechanism adds no noise.
        """
        return self.mechanism.plan(self.public_constants, num_units)

    @property
    def cohort_size(self) -> int:
        """Number of clients in a round, at least 1."""
        # 0.29 * 100 is 28.999... in floating point, and means 29.
        return max(1, int(self.num_clients * self.client_fraction + 1e-9))

    @property
    def secure(self) -> SecureSum | None:
        """Public constants of secure aggregation, None where updates leave one by one."""
        if self.privacy.aggregation != "secure":
            return None
        return SecureSum.of(self.num_clients, self.privacy.secure_colluding, self.privacy.secure_honest)

    @property
    def sums_exactly(self) -> bool:
        """True if the server sees sums of updates without noise."""
        return self.privacy.aggregation == "secure" and not self.private

    @property
    def exact_sum(self) -> SecureSum | None:
        """Public constants of secure sums without noise, None where there are none."""
        return self.secure if self.sums_exactly else None

    @property
    def min_updates(self) -> int:
        """Fewest usable updates with which a round counts."""
        return max(self.min_clients or 1, self.secure.min_survivors if self.secure else 1)

    @property
    def participations(self) -> int:
        """Largest number of rounds in which one client takes part."""
        # Cohorts are drawn so that nobody exceeds the even share, rounded up.
        return -(-self.num_rounds * self.cohort_size // self.num_clients)
