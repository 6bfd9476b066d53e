"""What only a GPU can show. Without one there is nothing to collect."""

import torch

if not torch.cuda.is_available():
    collect_ignore_glob = ["*"]
