"""The operations once more, in NumPy, from their formulas: slow loops, nothing shared."""

from __future__ import annotations

import numpy as np

F32 = np.float32


def sign(g):
    return np.where(np.isnan(g), 0, np.sign(g)).astype(F32)


def clip(value, low, high):
    """NaN stays NaN."""
    value = np.where(value < low, low, value)
    return np.where(value > high, high, value)


def sign_step(x_ref, x_cur, grad, alpha, eps, lo, hi):
    moved = x_cur + F32(alpha) * sign(grad)
    return clip(clip(moved, x_ref - F32(eps), x_ref + F32(eps)), F32(lo), F32(hi))


def philox(key, counter):
    """Philox 4×32-10 (Salmon et al. 2011) in Python integers: four words of one counter."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (p1 >> 32) ^ c[1] ^ k0,
            p1 & 0xFFFFFFFF,
            (p0 >> 32) ^ c[3] ^ k1,
            p0 & 0xFFFFFFFF,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def noise(shape, index, key, kind):
    """(B, C, H, W) float64 for normals, exact fp32 values for uniforms, numbered in NHWC order."""
    batch, channels, height, width = shape
    count = channels * height * width
    out = np.zeros((batch, count))
    for b, i in enumerate(int(i) for i in index):
        words = []
        for group in range(-(-count // 4)):
            words += philox(key, (group, 0, i & 0xFFFFFFFF, (i >> 32) & 0xFFFFFFFF))
        u = [(word >> 8) / 2**24 for word in words]
        if kind == "uniform":
            out[b] = [2 * value - 1 for value in u][:count]
            continue
        normals = []
        for first, second in zip(u[::2], u[1::2], strict=True):
            radius = np.sqrt(-2 * np.log(first + 2.0**-24))
            angle = float(F32(second) * F32(2 * np.pi))
            normals += [radius * np.cos(angle), radius * np.sin(angle)]
        out[b] = normals[:count]
    return out.reshape(batch, height, width, channels).transpose(0, 3, 1, 2)


def augment(images, shift_y, shift_x, flip, pad):
    batch, height, width, channels = images.shape
    out = np.zeros((batch, channels, height, width), F32)
    for b in range(batch):
        padded = np.pad(images[b], ((pad, pad), (pad, pad), (0, 0)))
        crop = padded[shift_y[b] : shift_y[b] + height, shift_x[b] : shift_x[b] + width]
        if flip[b]:
            crop = crop[:, ::-1]
        out[b] = (crop / 255).astype(F32).transpose(2, 0, 1)
    return out


def bank_apply(x, z, y, lo, hi):
    return np.stack([clip(x[b] + z[y[b]], F32(lo), F32(hi)) for b in range(len(y))])


def bank_accumulate(grad, y, num_classes):
    sums = np.zeros((num_classes, *grad.shape[1:]), F32)
    for b in range(len(y)):
        sums[y[b]] = sums[y[b]] + grad[b].astype(F32)
    return sums, np.isin(np.arange(num_classes), y)


def bank_step(z, grad, y, alpha, eps):
    sums, present = bank_accumulate(grad, y, len(z))
    moved = clip(z - F32(alpha) * sign(sums), F32(-eps), F32(eps))
    return np.where(present[:, None, None, None], moved, z)


def distill_loss(logits, p, y, lam):
    """Loss, and its gradients in logits and p, in float64; at p = 0 p·log p counts as flat."""
    logits, p = logits.astype(float), p.astype(float)
    shifted = logits - logits.max(1, keepdims=True)
    log_q = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(y))
    safe = np.where(p > 0, p, 1)
    losses = -log_q[rows, y] + lam * (p * np.log(safe) - p * log_q).sum(1)
    q = np.exp(log_q)
    grad = q + lam * (q * p.sum(1, keepdims=True) - p)
    grad[rows, y] -= 1
    target_grad = lam * (np.log(safe) + (p > 0) - log_q)
    return losses.mean(), grad / len(y), target_grad / len(y)


def memory_update(memory, seen, index, probs, gamma):
    memory, seen = memory.copy(), seen.copy()
    out = probs.copy()
    for b, i in enumerate(index):
        if seen[i]:
            out[b] = F32(gamma) * memory[i].astype(F32) + F32(1 - gamma) * probs[b]
        memory[i], seen[i] = out[b].astype(memory.dtype), True
    return out, memory, seen


def conv3x3(x, weight):
    """The sum over taps and channels, float64: out[y, x] takes w[dy, dx] of x[y + dy − 1, …]."""
    x, weight = x.astype(float), weight.astype(float)
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = 0
    for dy, dx in np.ndindex(3, 3):
        seen = padded[:, :, dy : dy + height, dx : dx + width]
        total = total + np.tensordot(weight[:, :, dy, dx], seen, (1, 1)).transpose(1, 0, 2, 3)
    return total


def conv3x3_gradient(grad, weight):
    """Of x, from the gradient of conv3x3(x, weight): what each pixel of out took, it gives back."""
    grad, weight = grad.astype(float), weight.astype(float)
    height, width = grad.shape[2:]
    padded = np.zeros((len(grad), weight.shape[1], height + 2, width + 2))
    for dy, dx in np.ndindex(3, 3):
        given = np.tensordot(weight[:, :, dy, dx], grad, (0, 1)).transpose(1, 0, 2, 3)
        padded[:, :, dy : dy + height, dx : dx + width] += given
    return padded[:, :, 1:-1, 1:-1]


def strided3x3(x, weight, weight1):
    """Every second pixel of conv3x3(x, weight), and of the product of channels by weight1."""
    product = np.tensordot(weight1.astype(float)[:, :, 0, 0], x.astype(float), (1, 1))
    return conv3x3(x, weight)[:, :, ::2, ::2], product.transpose(1, 0, 2, 3)[:, :, ::2, ::2]


def strided3x3_gradient(grad, grad1, weight, weight1):
    """Of x: the pixels between those of out were taken by nobody."""
    batch, filters, height, width = grad.shape
    apart, apart1 = np.zeros((2, batch, filters, 2 * height, 2 * width))
    apart[:, :, ::2, ::2], apart1[:, :, ::2, ::2] = grad, grad1
    given = np.tensordot(weight1.astype(float)[:, :, 0, 0], apart1, (0, 1))
    return conv3x3_gradient(apart, weight) + given.transpose(1, 0, 2, 3)
