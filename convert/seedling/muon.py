# SPDX-License-Identifier: Apache-2.0
"""Muon: momentum whose matrices are made orthogonal before they are added to the weights.

Every direction of a weight matrix then moves by the same amount, so what is rare in the data (one
sprite of 1,200) is learned at the pace of what is common. Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon; step size after Liu et al. 2025, arXiv:2502.16982.
"""

import torch

# a x + b x^3 + c x^5, again and again, takes singular values in (0, 1] to about 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS = 0.2  # of one update's numbers, about what AdamW's are


def orthogonalise(m):
    """[n, rows, cols] -> about U V' of each matrix m = U S V' (Newton-Schulz, in bfloat16)."""
    a, b, c = QUINTIC
    wide = m.shape[1] <= m.shape[2]
    x = m if wide else m.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(m.dtype)


def squares(t):
    """A matrix as a stack of matrices. Fused projections (query, key, value, gates stand above one
    another) fall apart into square parts, each with its own directions."""
    rows, cols = t.shape
    parted = rows > cols and rows % cols == 0
    return t.reshape(-1, cols, cols) if parted else t.reshape(1, rows, cols)


class Muon(torch.optim.Optimizer):
    """For weight matrices inside the network; embeddings, gains and heads belong to AdamW."""

    def __init__(self, params, lr=0.0, momentum=0.95, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(squares(p).shape[1:], []).append(p)
            for params in shapes.values():
                self._step_alike(group, params)

    def _step_alike(self, group, params):
        """Matrices of one shape, all in one product."""
        grads = torch.cat([squares(p.grad) for p in params])
        state = self.state[params[0]]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(grads)
        beta, mean = group["momentum"], state["momentum"]
        mean.lerp_(grads, 1 - beta)
        update = orthogonalise(grads.lerp_(mean, beta))  # Nesterov: one step ahead
        update *= -group["lr"] * RMS * max(update.shape[1:]) ** 0.5
        parts = update.split([len(squares(p)) for p in params])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(
            params, [u.reshape(p.shape) for u, p in zip(parts, params, strict=True)]
        )
