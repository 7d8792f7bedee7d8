"""The InceptionV3 that FID takes, in PyTorch: its layers under the names of the official file.

Written from the description of the network: what FID has of its own is the padding that means leave out, the largest
neighbour in the last block, and batch normalisation with 0.001.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
nn, F = torch.nn, torch.nn.functional


class ConvNorm(nn.Module):
    def __init__(self, wide, out, size, stride=1, pad=0):
        super().__init__()
        self.conv = nn.Conv2d(wide, out, size, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side: each a list of (name, width, size, stride, padding), one after the other.

    A last entry that is a list itself forks the branch; `pool` is the width behind the pooling, or None to keep it.
    """

    def __init__(self, wide, branches, pool, pooling):
        super().__init__()
        self.branches, self.pool, self.pooling, self.out = [], pool, pooling, 0
        for branch in branches:
            now, names = wide, []
            for entry in branch:
                forks = entry if isinstance(entry, list) else [entry]
                for name, out, *options in forks:
                    self.add_module(name, ConvNorm(now, out, *options))
                names.append([name for name, *_ in forks])
                now = sum(out for _, out, *_ in forks)
            self.out += now
            self.branches.append(names)
        if pool:
            self.branch_pool = ConvNorm(wide, pool, 1)
        self.out += pool or wide

    def forward(self, x):
        found = []
        for branch in self.branches:
            each = x
            for names in branch:
                each = torch.cat([getattr(self, name)(each) for name in names], 1)
            found.append(each)
        pooled = self.pooling(x)
        return torch.cat([*found, self.branch_pool(pooled) if self.pool else pooled], 1)


def mean_inside(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def largest(x):
    return F.max_pool2d(x, 3, 1, 1)


def halved(x):
    return F.max_pool2d(x, 3, 2)


ROW, COLUMN, ROW_PAD, COLUMN_PAD = (1, 7), (7, 1), (0, 3), (3, 0)


def fine(wide, pool):
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 1, 1)]
    five = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5, 1, 2)]
    return Block(wide, [[("branch1x1", 64, 1)], five, double], pool, mean_inside)


def middle(wide, width):
    double = [("branch7x7dbl_1", width, 1)]
    double += [("branch7x7dbl_2", width, COLUMN, 1, COLUMN_PAD), ("branch7x7dbl_3", width, ROW, 1, ROW_PAD)]
    double += [("branch7x7dbl_4", width, COLUMN, 1, COLUMN_PAD), ("branch7x7dbl_5", 192, ROW, 1, ROW_PAD)]
    seven = [("branch7x7_1", width, 1), ("branch7x7_2", width, ROW, 1, ROW_PAD)]
    seven += [("branch7x7_3", 192, COLUMN, 1, COLUMN_PAD)]
    return Block(wide, [[("branch1x1", 192, 1)], seven, double], 192, mean_inside)


def coarse(wide, pooling):
    def fork(name):
        return [(f"{name}a", 384, (1, 3), 1, (0, 1)), (f"{name}b", 384, (3, 1), 1, (1, 0))]

    double = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3, 1, 1), fork("branch3x3dbl_3")]
    three = [("branch3x3_1", 384, 1), fork("branch3x3_2")]
    return Block(wide, [[("branch1x1", 320, 1)], three, double], 192, pooling)


def shrink_fine(wide):
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 2)]
    return Block(wide, [[("branch3x3", 384, 3, 2)], double], None, halved)


def shrink_middle(wide):
    seven = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, ROW, 1, ROW_PAD)]
    seven += [("branch7x7x3_3", 192, COLUMN, 1, COLUMN_PAD), ("branch7x7x3_4", 192, 3, 2)]
    return Block(wide, [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)], seven], None, halved)


class Inception(nn.Module):
    """From pixels (B, 3, H, W), -1 to 1, to (B, 2048)."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        wide = 192
        blocks = {f"Mixed_5{letter}": (fine, pool) for letter, pool in zip("bcd", (32, 64, 64), strict=True)}
        blocks |= {"Mixed_6a": (shrink_fine,)}
        blocks |= {
            f"Mixed_6{letter}": (middle, each) for letter, each in zip("bcde", (128, 160, 160, 192), strict=True)
        }
        blocks |= {"Mixed_7a": (shrink_middle,), "Mixed_7b": (coarse, mean_inside), "Mixed_7c": (coarse, largest)}
        for name, (make, *options) in blocks.items():
            block = make(wide, *options)
            self.add_module(name, block)
            wide = block.out
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halved(x)))
        x = halved(x)
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean(dim=(2, 3))


def seeded_inception():
    """The network with random weights whose activations keep their size, and statistics that are not 0 and 1."""
    rng = np.random.RandomState(0)
    model = Inception().eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.ndim == 4:
            values = rng.standard_normal(tensor.shape) * np.sqrt(2 / np.prod(tensor.shape[1:]))
        elif name.endswith(("bn.weight", "running_var")):
            values = rng.uniform(0.5, 1.5, tensor.shape)
        else:
            values = 0.1 * rng.standard_normal(tensor.shape)
        tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def write_inception(path):
    """The official file, of seeded weights: a state dict without counters of batches."""
    state = seeded_inception().state_dict()
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, path)
    return path
