"""What to write instead of NumPy functions that are not supported: part of the error that names them."""

from ..trace import ALTERNATIVES

_WHERE = "build a new array with np.where or np.concatenate instead of writing into one"
_LOOP = "call your function on slices and join the results with np.stack"

ALTERNATIVES.update(
    {
        "apply_along_axis": _LOOP,
        "apply_over_axes": "chain reductions over axes",
        "choose": "use np.select, or index np.stack of the choices",
        "convolve": "use np.einsum or np.matmul on shifted slices",
        "copyto": "for np.full or an item assignment of a traced value use np.broadcast_to, np.where or np.concatenate",
        "corrcoef": "write it with np.mean and np.matmul",
        "correlate": "use np.einsum or np.matmul on shifted slices",
        "cov": "write it with np.mean and np.matmul",
        "divmod": "use a // b and a % b",
        "fft": "complex numbers have no derivative here: multiply by cosine and sine matrices with np.matmul",
        "fill_diagonal": _WHERE,
        "frexp": "use np.log2 and np.exp2",
        "histogram": "counts have no derivative; use a smooth kernel, np.exp and np.sum",
        "insert": "join slices with np.concatenate",
        "interp": "find places with np.searchsorted and interpolate between entries taken with x[index]",
        "linalg.cond": "use np.linalg.norm(x) * np.linalg.norm(np.linalg.inv(x))",
        "linalg.eig": "use np.linalg.eigh for symmetric matrices",
        "linalg.eigvals": "use np.linalg.eigvalsh for symmetric matrices",
        "modf": "use x - np.trunc(x) and np.trunc(x)",
        "nanmedian": "use np.median where nothing is nan",
        "nanpercentile": "use np.percentile where nothing is nan",
        "nanquantile": "use np.quantile where nothing is nan",
        "piecewise": "use np.select or np.where",
        "place": _WHERE,
        "put": _WHERE,
        "put_along_axis": _WHERE,
        "putmask": _WHERE,
        "resize": "use np.tile and a slice",
        "scipy.special.logsumexp": "it does not dispatch: use gl.logsumexp(x, axis=None, keepdims=False, b=None)",
        "scipy.special.polygamma": "it does not dispatch: use (-1)**(n + 1) * n! * scipy.special.zeta(n + 1, x)",
        "scipy.special.softmax": "it does not dispatch: use gl.softmax(x, axis=None)",
        "unwrap": "add multiples of 2π computed with gl.stop_gradient",
        "vander": "use x[:, None] ** np.arange(n)",
    }
)
