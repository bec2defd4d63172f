"""Classifying texts: TextClassifier, an estimator by scikit-learn's conventions, and its derivatives by word."""

try:
    import safetensors  # noqa: F401
    import sklearn  # noqa: F401
    import tqdm  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'gradlib.text needs {error.name}, which is not installed: pip install "gradlib[text]"', name=error.name
    ) from error

from .classifier import TextClassifier
from .explanation import Explanation, WordJacobian

__all__ = ["Explanation", "TextClassifier", "WordJacobian"]
