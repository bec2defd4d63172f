"""Every example in a docstring runs and gives what it says."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import gradlib
from gradlib.jacobian.function import JacobianFunction

MODULES = ["gradlib"] + [m.name for m in pkgutil.walk_packages(gradlib.__path__, "gradlib.")]
PUBLIC = [n for n, v in vars(gradlib).items() if callable(v) and not n.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert not failed


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_a_text_and_an_example(name):
    text = getattr(gradlib, name).__doc__
    assert text and len(text.split()) > 5
    assert ">>>" in text, f"gl.{name} has no example"


@pytest.mark.parametrize("kind", [JacobianFunction, gradlib.JacobianOperator])
def test_methods_of_jacobians_have_a_text_and_an_example(kind):
    methods = {n: m for n, m in vars(kind).items() if inspect.isfunction(m) and not n.startswith("_")}
    assert len(methods) > 2
    for name, method in methods.items():
        assert ">>>" in (method.__doc__ or ""), f"{kind.__name__}.{name} has no example"
