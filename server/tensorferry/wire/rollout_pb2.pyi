# Generated from protos/ by `make protos`; don't edit.
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Rollout(_message.Message):
    __slots__ = ("labels", "split", "shadow", "canary", "previous_stable", "history", "generation")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_STABLE_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.ScalarMap[str, int]
    split: _containers.RepeatedCompositeFieldContainer[Share]
    shadow: Shadow
    canary: Canary
    previous_stable: int
    history: _containers.RepeatedCompositeFieldContainer[RolloutEvent]
    generation: int
    def __init__(self, labels: _Optional[_Mapping[str, int]] = ..., split: _Optional[_Iterable[_Union[Share, _Mapping]]] = ..., shadow: _Optional[_Union[Shadow, _Mapping]] = ..., canary: _Optional[_Union[Canary, _Mapping]] = ..., previous_stable: _Optional[int] = ..., history: _Optional[_Iterable[_Union[RolloutEvent, _Mapping]]] = ..., generation: _Optional[int] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("target", "weight")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    target: str
    weight: float
    def __init__(self, target: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class Shadow(_message.Message):
    __slots__ = ("target", "share")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    target: str
    share: float
    def __init__(self, target: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class Guards(_message.Message):
    __slots__ = ("max_error_rate_increase", "max_p99_ratio", "max_score_shift", "min_requests", "score_output")
    MAX_ERROR_RATE_INCREASE_FIELD_NUMBER: _ClassVar[int]
    MAX_P99_RATIO_FIELD_NUMBER: _ClassVar[int]
    MAX_SCORE_SHIFT_FIELD_NUMBER: _ClassVar[int]
    MIN_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SCORE_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    max_error_rate_increase: float
    max_p99_ratio: float
    max_score_shift: float
    min_requests: int
    score_output: str
    def __init__(self, max_error_rate_increase: _Optional[float] = ..., max_p99_ratio: _Optional[float] = ..., max_score_shift: _Optional[float] = ..., min_requests: _Optional[int] = ..., score_output: _Optional[str] = ...) -> None: ...

class Canary(_message.Message):
    __slots__ = ("state", "stable_version", "version", "steps", "step", "step_requests", "step_s", "guards", "reason")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NONE: _ClassVar[Canary.State]
        RUNNING: _ClassVar[Canary.State]
        PROMOTED: _ClassVar[Canary.State]
        ROLLED_BACK: _ClassVar[Canary.State]
    NONE: Canary.State
    RUNNING: Canary.State
    PROMOTED: Canary.State
    ROLLED_BACK: Canary.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    STABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEP_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    state: Canary.State
    stable_version: int
    version: int
    steps: _containers.RepeatedScalarFieldContainer[float]
    step: int
    step_requests: int
    step_s: float
    guards: Guards
    reason: str
    def __init__(self, state: _Optional[_Union[Canary.State, str]] = ..., stable_version: _Optional[int] = ..., version: _Optional[int] = ..., steps: _Optional[_Iterable[float]] = ..., step: _Optional[int] = ..., step_requests: _Optional[int] = ..., step_s: _Optional[float] = ..., guards: _Optional[_Union[Guards, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class RolloutEvent(_message.Message):
    __slots__ = ("time_ms", "what")
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    time_ms: int
    what: str
    def __init__(self, time_ms: _Optional[int] = ..., what: _Optional[str] = ...) -> None: ...

class RolloutStatusRequest(_message.Message):
    __slots__ = ("model_name",)
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    def __init__(self, model_name: _Optional[str] = ...) -> None: ...

class RolloutStatusResponse(_message.Message):
    __slots__ = ("rollout", "ready_versions")
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    READY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    rollout: Rollout
    ready_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, rollout: _Optional[_Union[Rollout, _Mapping]] = ..., ready_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class SetLabel(_message.Message):
    __slots__ = ("label", "version")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    label: str
    version: int
    def __init__(self, label: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class SetSplit(_message.Message):
    __slots__ = ("shares",)
    SHARES_FIELD_NUMBER: _ClassVar[int]
    shares: _containers.RepeatedCompositeFieldContainer[Share]
    def __init__(self, shares: _Optional[_Iterable[_Union[Share, _Mapping]]] = ...) -> None: ...

class SetShadow(_message.Message):
    __slots__ = ("shadow",)
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    shadow: Shadow
    def __init__(self, shadow: _Optional[_Union[Shadow, _Mapping]] = ...) -> None: ...

class StartCanary(_message.Message):
    __slots__ = ("target", "steps", "step_requests", "step_s", "guards")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    target: str
    steps: _containers.RepeatedScalarFieldContainer[float]
    step_requests: int
    step_s: float
    guards: Guards
    def __init__(self, target: _Optional[str] = ..., steps: _Optional[_Iterable[float]] = ..., step_requests: _Optional[int] = ..., step_s: _Optional[float] = ..., guards: _Optional[_Union[Guards, _Mapping]] = ...) -> None: ...

class Promote(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Rollback(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ChangeRolloutRequest(_message.Message):
    __slots__ = ("model_name", "set_label", "set_split", "set_shadow", "start_canary", "promote", "rollback")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    SET_LABEL_FIELD_NUMBER: _ClassVar[int]
    SET_SPLIT_FIELD_NUMBER: _ClassVar[int]
    SET_SHADOW_FIELD_NUMBER: _ClassVar[int]
    START_CANARY_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    set_label: SetLabel
    set_split: SetSplit
    set_shadow: SetShadow
    start_canary: StartCanary
    promote: Promote
    rollback: Rollback
    def __init__(self, model_name: _Optional[str] = ..., set_label: _Optional[_Union[SetLabel, _Mapping]] = ..., set_split: _Optional[_Union[SetSplit, _Mapping]] = ..., set_shadow: _Optional[_Union[SetShadow, _Mapping]] = ..., start_canary: _Optional[_Union[StartCanary, _Mapping]] = ..., promote: _Optional[_Union[Promote, _Mapping]] = ..., rollback: _Optional[_Union[Rollback, _Mapping]] = ...) -> None: ...

class RolloutReportRequest(_message.Message):
    __slots__ = ("model_name",)
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    def __init__(self, model_name: _Optional[str] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("bounds", "counts")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("value", "low", "high")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class Arm(_message.Message):
    __slots__ = ("version", "share", "is_shadow", "requests", "errors", "not_finite", "latency_p50_ms", "latency_p99_ms", "scores", "score_mean", "labelled", "auc", "score_differences", "compared", "dropped", "late", "incompatible")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    IS_SHADOW_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    NOT_FINITE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P50_MS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P99_MS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SCORE_MEAN_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    AUC_FIELD_NUMBER: _ClassVar[int]
    SCORE_DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    INCOMPATIBLE_FIELD_NUMBER: _ClassVar[int]
    version: int
    share: float
    is_shadow: bool
    requests: int
    errors: int
    not_finite: int
    latency_p50_ms: float
    latency_p99_ms: float
    scores: Histogram
    score_mean: float
    labelled: int
    auc: Interval
    score_differences: Histogram
    compared: int
    dropped: int
    late: int
    incompatible: int
    def __init__(self, version: _Optional[int] = ..., share: _Optional[float] = ..., is_shadow: bool = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., not_finite: _Optional[int] = ..., latency_p50_ms: _Optional[float] = ..., latency_p99_ms: _Optional[float] = ..., scores: _Optional[_Union[Histogram, _Mapping]] = ..., score_mean: _Optional[float] = ..., labelled: _Optional[int] = ..., auc: _Optional[_Union[Interval, _Mapping]] = ..., score_differences: _Optional[_Union[Histogram, _Mapping]] = ..., compared: _Optional[int] = ..., dropped: _Optional[int] = ..., late: _Optional[int] = ..., incompatible: _Optional[int] = ...) -> None: ...

class RolloutReportResponse(_message.Message):
    __slots__ = ("model_name", "arms")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    arms: _containers.RepeatedCompositeFieldContainer[Arm]
    def __init__(self, model_name: _Optional[str] = ..., arms: _Optional[_Iterable[_Union[Arm, _Mapping]]] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: int
    def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...

class RolloutFeedbackRequest(_message.Message):
    __slots__ = ("model_name", "labels")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    labels: _containers.RepeatedCompositeFieldContainer[Label]
    def __init__(self, model_name: _Optional[str] = ..., labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ...) -> None: ...

class RolloutFeedbackResponse(_message.Message):
    __slots__ = ("matched",)
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    matched: int
    def __init__(self, matched: _Optional[int] = ...) -> None: ...
