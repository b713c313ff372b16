"""Products of queries and keys under a decay a key channel: P_ij = sum over channels of q_i k_j a_{j+1} ... a_{i-1}.

Dividing the running product of decays at i by the one at j, as a scalar decay may, overflows where channels forget
within a chunk. Here every decay is a product of numbers in [0, 1] that is never divided by: two neighbouring blocks of
positions meet at their border, up to which the keys of the first have decayed and from which on the queries of the
second decay. Blocks double from one position to the whole chunk, which is log2(C) matrix products.
Source: the secondary chunks of Yang et al. 2023, arXiv 2312.06635, section 4, taken to every level.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def decayed_products(q: Tensor, k: Tensor, decay: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of a chunk of C positions, with R queries and E keys a position.

    **Arguments:** `q` [..., C, R, K], each reading what the state was before its position, so that a query of the
    state after it comes multiplied by its own decay; `k` [..., C, E, K]; `decay` [..., C, K] in [0, 1]; `own`
    [..., C, R, E], the products within a position; C a power of two.
    **Returns** the products [..., C, R, C, E], zero where the key comes later; the queries decayed since the start of
    the chunk; the keys decayed to its end.
    """
    C, R, E = own.shape[-3:]
    decay = decay.unsqueeze(-2)
    # From here on [..., n, m R, K], [..., n, m E, K], [..., n, 1, K], [..., n, m R, m E]: n blocks of m positions.
    for _ in range(C.bit_length() - 1):
        (q0, q1), (k0, k1), (a0, a1), (own0, own1) = (t.unflatten(-3, (-1, 2)).unbind(-3) for t in (q, k, decay, own))
        later = torch.cat([q1 @ k0.transpose(-1, -2), own1], dim=-1)
        own = torch.cat([F.pad(own0, (0, own0.shape[-1])), later], dim=-2)
        q, k, decay = torch.cat([q0, q1 * a0], dim=-2), torch.cat([k0 * a1, k1], dim=-2), a0 * a1
    q, k, own = q.squeeze(-3), k.squeeze(-3), own.squeeze(-3)
    return own.unflatten(-1, (C, E)).unflatten(-3, (C, R)), q.unflatten(-2, (C, R)), k.unflatten(-2, (C, E))
