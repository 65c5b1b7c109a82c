"""Which weights of the layers of other libraries are pruned, and which are refused or named in a warning."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_fairprune import WeightPruning


class Task(pl.LightningModule):
    """Any network with any number as its loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        out = self.network(**batch) if isinstance(batch, dict) else self.network(*batch)
        out = getattr(out, "logits", out)
        return out.float().square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


def pruned(network: nn.Module, batch: Any, **options: Any) -> WeightPruning:
    prune = WeightPruning(sparsity=0.5, start=1, end=1, **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[prune],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Task(network), DataLoader([batch] * 2, batch_size=None))  # type: ignore[arg-type]
    for name, mask in prune.masks.items():
        value = network.get_parameter(name.removeprefix("network.")).detach()
        assert not value[~mask].any()
    return prune


def test_linear_layers_of_torch_geometric() -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    edges = torch.randint(10, (2, 30), generator=torch.Generator().manual_seed(0))
    network = geometric.Sequential(
        "x, edges",
        [
            (geometric.GCNConv(6, 8), "x, edges -> x"),
            nn.ReLU(),
            (geometric.SAGEConv(8, 8), "x, edges -> x"),
            nn.ReLU(),
            geometric.Linear(8, 3),
        ],
    )
    prune = pruned(network, (torch.randn(10, 6), edges))
    assert len(prune.masks) == 3
    assert prune.history[-1].of_all == round(0.5 * (48 + 2 * 64)) / (48 + 8 + 2 * 64 + 8 + 24 + 3)


def test_linear_layers_and_experts_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ids = {"input_ids": torch.randint(1, 50, (2, 6))}
    small = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, num_labels=3, **small)
    prune = pruned(transformers.GPT2ForSequenceClassification(config), ids)
    kinds = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert list(prune.masks) == [f"network.transformer.h.0.{kind}.weight" for kind in kinds]
    if not hasattr(transformers, "GptOssForCausalLM"):
        return
    config = transformers.GptOssConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=2, num_local_experts=4, **small
    )  # fmt: skip
    told = r"stay dense: `network.model.layers.0.mlp.experts.gate_up_proj` \(\d+\.\d%\), `\S+.down_proj`"
    with pytest.warns(UserWarning, match=told):
        pruned(transformers.GptOssForCausalLM(config), ids)


@pytest.mark.parametrize("name", ["nf_resnet26", "resnetv2_50x1_bit"])
def test_standardised_convolutions_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, num_classes=3)
    told = r"`network.stem.conv.weight` is not .* zeros in a trial become 0 there.* and \d\d more"
    with pytest.raises(ValueError, match=told):
        pruned(network, (torch.randn(2, 3, 32, 32),))


def test_networks_of_timm_and_monai() -> None:
    timm = pytest.importorskip("timm")
    prune = pruned(
        timm.create_model("vit_tiny_patch16_224", img_size=32), (torch.randn(2, 3, 32, 32),)
    )
    assert prune.history[-1].of_all is not None
    monai = pytest.importorskip("monai.networks.nets")
    network = monai.UNet(2, 1, 3, channels=(4, 8), strides=(2,))
    assert pruned(network, (torch.randn(2, 1, 16, 16),)).pruned
