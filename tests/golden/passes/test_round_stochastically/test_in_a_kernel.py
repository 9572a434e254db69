"""opt: reads 8 and writes 6 bytes for each element."""

import triton
import triton.language as tl
from triton.language.extra.libdevice import pow, tanh


@triton.jit
def lerp(x, y, w):
    return tl.where(w < 0.5, x + w * (y - x), y - (y - x) * (1 - w))


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def reciprocal(x):
    return 1.0 / x


@triton.jit
def own_tensor(starts, count, block):
    """The last tensor that starts at ``block`` or before."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        after = tl.load(starts + middle) > block
        high = tl.where(after, middle - 1, high)
        low = tl.where(after, low, middle)
    return low


@triton.jit
def random_words(counter, key):  # Philox2x32, 7 rounds
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    for _ in tl.static_range(7):
        product = low.to(tl.uint64) * 0xD256D193
        low, high = (product >> 32).to(tl.uint32) ^ key ^ high, product.to(tl.uint32)
        key = key + 0x9E3779B9
    return low, high


@triton.jit
def round_stochastic(value, step, counter, seed: tl.constexpr, entry: tl.constexpr):
    """The value as a number that bf16 has."""
    key = tl.full((), step, tl.float32).to(tl.uint32) + tl.full((), seed, tl.uint32)
    low, high = random_words(counter + (entry // 4 % 4 << 60), key)
    word = high if entry // 2 % 2 == 1 else low
    bits = value.to(tl.float32).to(tl.uint32, bitcast=True)
    bits = bits + (word >> 16 * (entry % 2) & 0xFFFF)
    rounded = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(value != value, value, rounded)


@triton.jit
def opt_block(param_at, exp_avg_at, exp_avg_sq_at, grad_at, inside, c0, c1, c2, c3, c4, c5, c6, c7, counter):
    # c0 = betas[1]
    # c1 = 1 - betas[1]
    # c2 = ((1 - (betas[1] ** (step + 1))) ** 0.5)
    # c3 = eps
    # c4 = 1 - betas[0]
    # c5 = (1 - (lr * weight_decay))
    # c6 = -(lr / (1 - (betas[0] ** (step + 1))))
    # c7 = rounding_step % 16777216
    param = tl.load(param_at, mask=inside).to(tl.float32)
    exp_avg = tl.load(exp_avg_at, mask=inside).to(tl.float32)
    exp_avg_sq = tl.load(exp_avg_sq_at, mask=inside).to(tl.float32)
    grad = tl.load(grad_at, mask=inside).to(tl.float32)
    t0 = exp_avg_sq * c0
    t1 = t0 + c1 * grad * grad
    t2 = tl.sqrt(t1)
    t3 = t2 / c2
    t4 = t3 + c3
    t5 = lerp(exp_avg, grad, c4)
    t6 = param * c5
    t7 = t6 + c6 * (t5 / t4)
    new_param = round_stochastic(t7, c7, counter, 0x257a3673, 0x0)
    new_exp_avg = round_stochastic(t5, c7, counter, 0x257a3673, 0x1)
    new_exp_avg_sq = round_stochastic(t1, c7, counter, 0x257a3673, 0x2)
    tl.store(param_at, new_param, mask=inside)
    tl.store(exp_avg_at, new_exp_avg, mask=inside)
    tl.store(exp_avg_sq_at, new_exp_avg_sq, mask=inside)


@triton.jit
def opt_kernel(
    pointers, sizes, starts, places, count, c0, c1, c2, c3, c4, c5, c6, c7, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    tensor = own_tensor(starts, count, block)
    first = (block - tl.load(starts + tensor)) * BLOCK
    size = tl.load(sizes + tensor)
    offset = first + tl.arange(0, BLOCK)
    inner = tl.load(places + 3 * tensor)
    outer = tl.load(places + 3 * tensor + 1)
    row = offset // inner
    counter = tl.load(places + 3 * tensor + 2) + row * outer + (offset - row * inner)
    address = tl.load(pointers + 0 * count + tensor).to(tl.pointer_type(tl.bfloat16))
    param_at = tl.multiple_of(address, 16) + offset
    address = tl.load(pointers + 1 * count + tensor).to(tl.pointer_type(tl.bfloat16))
    exp_avg_at = tl.multiple_of(address, 16) + offset
    address = tl.load(pointers + 2 * count + tensor).to(tl.pointer_type(tl.bfloat16))
    exp_avg_sq_at = tl.multiple_of(address, 16) + offset
    address = tl.load(pointers + 3 * count + tensor).to(tl.pointer_type(tl.bfloat16))
    grad_at = tl.multiple_of(address, 16) + offset
    if first + BLOCK <= size:  # whole vectors, no mask
        inside = tl.full((BLOCK,), True, tl.int1)
        opt_block(param_at, exp_avg_at, exp_avg_sq_at, grad_at, inside, c0, c1, c2, c3, c4, c5, c6, c7, counter)
    else:
        opt_block(param_at, exp_avg_at, exp_avg_sq_at, grad_at, offset < size, c0, c1, c2, c3, c4, c5, c6, c7, counter)
