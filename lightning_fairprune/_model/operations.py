"""What functions of torch do to predictions and labels, by their names."""

from __future__ import annotations

# What comes out of these is no longer a prediction that was only rescaled: a layer lies between, or the sign.
LAYERS = frozenset(
    {
        *(
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
        ),
        *(
            "tensordot",
            "cdist",
            "embedding",
            "embedding_bag",
            "lstm",
            "gru",
            "rnn_tanh",
            "rnn_relu",
        ),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *(
            "scaled_dot_product_attention",
            "multi_head_attention_forward",
            "neg",
            "negative",
            "rsub",
        ),
    }
)
# These take a shape, and no values.
SHAPES = frozenset(
    {
        *(
            "zeros_like",
            "ones_like",
            "full_like",
            "empty_like",
            "rand_like",
            "randn_like",
            "randint_like",
        ),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
    }
)
NORMALISED = frozenset({"log_softmax", "softmax", "sigmoid", "logsigmoid"})
# These leave class indices as they are, or turn them into one-hot rows.
SAME_LABELS = frozenset(
    {
        *(
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
        ),
        *(
            "view",
            "reshape",
            "flatten",
            "ravel",
            "squeeze",
            "unsqueeze",
            "expand",
            "contiguous",
            "clone",
            "detach",
        ),
        *("movedim", "permute", "transpose", "as_subclass", "one_hot", "scatter"),
    }
)
CHOSEN = frozenset({"argmax", "max", "topk", "sort", "argsort"})
# Functions whose integer arguments pick classes, so that these are labels.
PICKS = frozenset({"gather", "one_hot", "scatter", "getitem", "setitem", "eq", "take_along_dim"})
