"""PyTorch Geometric: graph classification with its own DataLoader, Data and Batch."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from compat import harness
from torch import Tensor, nn

import lightning_fairprune as lfp

pytest.importorskip("torch_geometric")

from torch_geometric.data import Data
from torch_geometric.data.lightning import LightningDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool

N, CLASSES = 60, 3
TRAIN, VAL = harness.labels_of(N), harness.labels_of(45, seed=1)


class Pair(Data):
    """A graph with a second one inside, for which `follow_batch` is made."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self.x_s.size(0) if key == "edge_index_s" else super().__inc__(key, value)


def graphs(labels: Tensor, seed: int) -> list[Data]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i, y in enumerate(labels.tolist()):
        nodes = int(torch.randint(3, 7, (), generator=generator))
        x = torch.randn(nodes, 4, generator=generator)
        x[:, y] += 1
        edges = torch.randint(0, nodes, (2, 2 * nodes), generator=generator)
        small = torch.randn(2, 4, generator=generator)
        loop = torch.tensor([[0, 1], [1, 0]])
        found.append(Pair(x=x, edge_index=edges, y=y, x_s=small, edge_index_s=loop, number=i))
    return found


class GCN(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(4, 16)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, data: Any) -> Tensor:
        one = self.conv(data.x, data.edge_index).relu()
        two = self.conv(data.x_s, data.edge_index_s).relu()
        pooled = [
            global_mean_pool(one, data.batch, data.num_graphs),
            global_mean_pool(two, data.x_s_batch, data.num_graphs),
        ]
        return self.head(torch.cat(pooled, 1))

    def training_step(self, data: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(data), data.y)

    def validation_step(self, data: Any, batch_idx: int) -> None:
        out = self(data)
        self.log("val_loss", F.cross_entropy(out, data.y), batch_size=data.num_graphs)

    def test_step(self, data: Any, batch_idx: int) -> None:
        loss = F.cross_entropy(self(data), data.y)
        self.log("test_loss", loss, batch_size=data.num_graphs)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.02)


class Graphs(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(graphs(TRAIN, 0), batch_size=8, shuffle=True, follow_batch=["x_s"])

    def val_dataloader(self) -> Any:
        return DataLoader(graphs(VAL, 1), batch_size=16, follow_batch=["x_s"])

    test_dataloader = val_dataloader


def loaders() -> harness.Data:
    data = Graphs()
    return {
        "train_dataloaders": data.train_dataloader(),
        "val_dataloaders": data.val_dataloader(),
    }


def project(name: str, data: Any, **options: Any) -> harness.Project:
    return harness.Project(
        name,
        GCN,
        data,
        ids=lambda batch: batch.number,
        labels=TRAIN,
        predict=lambda module, batch: (module(batch).argmax(1), batch.y),
        **options,
    )


def lightning_dataset() -> harness.Data:
    """PyG's own datamodule."""
    train, val = graphs(TRAIN, 0), graphs(VAL, 1)
    options = {"follow_batch": ["x_s"], "batch_size": 8, "num_workers": 0, "pin_memory": False}
    return {"datamodule": LightningDataset(train, val, val, **options)}


PROJECTS = [
    project("graphs", lambda: {"datamodule": Graphs()}),
    project("graphs, loaders to fit", loaders),
    project("LightningDataset", lightning_dataset),
    project(
        "graphs, hard ones",
        lambda: {"datamodule": Graphs()},
        prune={"score": lfp.scores.el2n, "keep": "hard"},
    ),
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)


# ---------------------------------------------------------------------------------- nodes of one graph


class Nodes(pl.LightningModule):
    """Every batch is the one graph; masks say which nodes are trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(4, CLASSES)

    def training_step(self, data: Any, batch_idx: int) -> Tensor:
        out = self.conv(data.x, data.edge_index)
        return F.cross_entropy(out[data.train_mask], data.y[data.train_mask])

    def validation_step(self, data: Any, batch_idx: int) -> None:
        out = self.conv(data.x, data.edge_index)
        loss = F.cross_entropy(out[data.val_mask], data.y[data.val_mask])
        self.log("val_loss", loss, batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.02)


def one_graph() -> Data:
    generator = torch.Generator().manual_seed(0)
    y = harness.labels_of(80)
    x = torch.randn(80, 4, generator=generator)
    x[torch.arange(80), y] += 1
    train = torch.arange(80) < 50
    edges = torch.randint(0, 80, (2, 200), generator=generator)
    return Data(x=x, edge_index=edges, y=y, train_mask=train, val_mask=~train)


def fit_nodes(*callbacks: pl.Callback) -> Nodes:
    pl.seed_everything(1, verbose=False)
    module, graph = Nodes(), one_graph()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    data = pl.LightningDataModule()
    data.train_dataloader = data.val_dataloader = lambda: DataLoader([graph])
    trainer.fit(module, datamodule=data)
    return module


def test_recalls_of_nodes() -> None:
    monitor = lfp.RecallMonitor(figures=False)
    module, graph = fit_nodes(monitor), one_graph()
    assert harness.same(module.state_dict(), fit_nodes().state_dict())
    with torch.no_grad():
        predicted = module.conv(graph.x, graph.edge_index).argmax(1)
    for k, recall in enumerate(monitor.counts["val"].recall.tolist()):
        of_class = graph.val_mask & (graph.y == k)
        assert recall == float((predicted[of_class] == k).double().mean())


def test_nodes_of_one_graph_are_no_samples() -> None:
    with pytest.raises((TypeError, ValueError), match=r"samples"):
        fit_nodes(lfp.DataPruning(density=0.5, warmup_epochs=1))
