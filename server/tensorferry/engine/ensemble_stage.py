"""One step of an ensemble: from the ensemble's tensors to its model's request, and back from the answer.

Rules for this file: it submits nothing and knows no request's fate; ``ensemble.py`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tensorferry.batching.pending import Pending
from tensorferry.errors import InvalidRequest, ModelFailed, ModelNotReady, NotFound, TensorferryError
from tensorferry.model import Bound, EnsembleStep, ModelSpec
from tensorferry.tensors import Buffer, Tensor, rows_of

__all__ = ["Stage"]

#: Forms of request (shapes and datatypes) remembered for each model; past it all are made anew.
_MAX_FORMS: Final = 256

#: Versions of the model remembered for each step: those that its requests are divided among, and a few more.
_MAX_FITS: Final = 8

_Form = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Fit:
    """A version of a step's model: where its inputs are, in its order, and the forms of request it took."""

    member: ModelSpec
    places: list[tuple[str, int]]
    forms: dict[_Form, Bound]


class Stage:
    """One step of the ensemble, and what has been learnt of the versions of its model.

    ``slots`` are the places among a chain's tensors of those that are written before this step.
    """

    def __init__(self, spec: ModelSpec, number: int, slots: dict[str, int]) -> None:
        self.step: EnsembleStep = spec.steps[number]
        self._label = f"ensemble {spec.name!r}, step {number + 1} (model {self.step.model!r})"
        self._reads = {own: slots[name] for own, name in self.step.inputs}
        self._reads_callers_alone = all(slot < len(spec.inputs) for slot in self._reads.values())
        self._writes = [own for own, _ in self.step.outputs]
        # By identity: comparing specifications takes longer than a request.
        self._fits: dict[int, _Fit] = {}

    def bind(self, member: ModelSpec, tensors: Sequence[Tensor]) -> tuple[Bound, list[Buffer]]:
        """Return the request to the model of the specification ``member``, and its data.

        Raises:
            InvalidRequest: the model doesn't take what the caller sent.
            ModelFailed: it doesn't take what the steps before have made.
        """
        fit = self._fits.get(id(member)) or self._learn(member)
        given = [tensors[slot] for _, slot in fit.places]
        form = tuple([(each.datatype, each.shape) for each in given])
        bound = fit.forms.get(form) or self._bind(fit, given, form)
        return bound, [each.data for each in given]

    def _learn(self, member: ModelSpec) -> _Fit:
        places = [(each.name, self._reads[each.name]) for each in member.inputs if each.name in self._reads]
        # Those that the model doesn't have make ``bind`` say so.
        places += [each for each in self._reads.items() if each not in places]
        if len(self._fits) >= _MAX_FITS:
            self._fits.clear()
        fit = self._fits[id(member)] = _Fit(member, places, {})
        return fit

    def _bind(self, fit: _Fit, given: Sequence[Tensor], form: _Form) -> Bound:
        named = [
            Tensor(own, each.datatype, each.shape, each.data)
            for (own, _), each in zip(fit.places, given, strict=True)
        ]
        try:
            bound = fit.member.bind(named)
        except InvalidRequest as error:
            if self._reads_callers_alone:
                raise
            raise ModelFailed(f"the steps before have made what the model doesn't take: {error}") from None
        if any(each.datatype == "BOOL" for each in given):
            return bound  # its bytes are looked at each time
        if len(fit.forms) >= _MAX_FORMS:
            fit.forms.clear()
        bound.forget_data()
        fit.forms[form] = bound
        return bound

    def collect(self, step: Pending, tensors: list[Tensor]) -> ModelFailed | None:
        """Append what the step has written, as views. Returns an error if something isn't there."""
        by_name = {each.name: each for each in step.batch_outputs}
        for own in self._writes:
            output = by_name.get(own)
            if output is None:
                came = f"the model gave {list(by_name)}, and the step needs {own!r}"
                return ModelFailed(f"{self._label}: {came}")
            if step.batch_rows:
                output = rows_of(output, step.first_row, step.bound.rows)
            tensors.append(output)
        return None

    def named(self, error: TensorferryError) -> TensorferryError:
        """Return an error of the same class, so that it has the same status, that says where it arose.

        A model that isn't there is no fault of the ensemble's caller.
        """
        kind = ModelNotReady if isinstance(error, NotFound) else type(error)
        return kind(f"{self._label}: {error}")
