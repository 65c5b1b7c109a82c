"""What functions of torch do to predictions and labels, by their names."""

from __future__ import annotations

PRODUCTS = {
    "linear",
    "bilinear",
    "matmul",
    "rmatmul",
    "mm",
    "bmm",
    "mv",
    "addmm",
    "baddbmm",
    "addmv",
    "einsum",
}
CONVOLUTIONS = {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}
_CELLS = {"embedding", "embedding_bag", "lstm", "gru", "rnn_tanh", "rnn_relu"}
_ATTENTION = {"scaled_dot_product_attention", "multi_head_attention_forward"}
_SIGNS = {"neg", "negative", "rsub"}
# What comes out of these is no longer a prediction that was only rescaled: a layer lies between, or the sign.
LAYERS = frozenset(PRODUCTS | CONVOLUTIONS | _CELLS | _ATTENTION | _SIGNS | {"tensordot", "cdist"})
# These take a shape, and no values.
SHAPES = frozenset(
    {f"{kind}_like" for kind in ("zeros", "ones", "full", "empty", "rand", "randn", "randint")}
    | {f"new_{kind}" for kind in ("zeros", "ones", "full", "empty", "tensor")}
)
NORMALISED = frozenset({"log_softmax", "softmax", "sigmoid", "logsigmoid"})
_CASTS = {
    "long",
    "int",
    "short",
    "to",
    "type",
    "type_as",
    "float",
    "half",
    "double",
    "bfloat16",
    "cuda",
    "cpu",
    "get",
}
_VIEWS = {
    "view",
    "reshape",
    "flatten",
    "ravel",
    "squeeze",
    "unsqueeze",
    "expand",
    "movedim",
    "permute",
    "transpose",
}
# These leave class indices as they are, or turn them into one-hot rows.
SAME_LABELS = frozenset(
    _CASTS | _VIEWS | {"contiguous", "clone", "detach", "as_subclass", "one_hot", "scatter"}
)
CHOSEN = frozenset({"argmax", "max", "topk", "sort", "argsort"})
# Functions whose integer arguments pick classes, so that these are labels.
PICKS = frozenset({"gather", "one_hot", "scatter", "getitem", "setitem", "eq", "take_along_dim"})
