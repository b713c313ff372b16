"""What the mixers compute, as functions of tensors: a plain PyTorch reference each, and the fast form beside it."""
