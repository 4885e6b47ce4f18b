"""Functions that launch kernels: operators of torch where a compiler or a mode looks on, else called as they are."""

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch._subclasses.fake_tensor import FakeTensorMode

from humanline_kernels.operators import operator


@operator("test_doubled")
def doubled(x: Tensor) -> Tensor:
    """Twice the tensor."""
    return x.clone().mul_(2)


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the operators that were called through torch."""
    names, call = list[str](), CustomOpDef.__call__

    def note(self: CustomOpDef, *args: object) -> object:
        names.append(self._name)
        return call(self, *args)

    monkeypatch.setattr(CustomOpDef, "__call__", note)
    return names


def test_without_a_compiler_the_function_itself_is_called(dispatched: list[str]):
    assert doubled(torch.ones(2)).tolist() == [2.0, 2.0]
    assert dispatched == []


def test_fake_tensors_get_the_registered_shape_also_outside_of_their_mode(dispatched: list[str]):
    with FakeTensorMode():
        fake = torch.ones(3)
        assert doubled(fake).shape == (3,)
    assert doubled(fake).shape == (3,)
    assert dispatched == ["test_doubled"] * 2


def test_a_compiled_graph_has_the_operator():
    seen = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(lambda x: doubled(x) + 1, backend=backend, fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [3.0, 3.0]
    assert any("humanline.test_doubled" in target for target in seen)


def test_the_operator_has_the_functions_name_and_docstring():
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Twice the tensor.")
