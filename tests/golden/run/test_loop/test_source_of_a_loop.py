def step(args):
    w, x, = args
    args.clear()
    w_grad_sum = zc_accumulator([8, 4], const_dtype, const_device)
    loss_sum = zc_accumulator([], const_dtype, const_device_1)
    w_gather = c10d_all_gather_into_tensor(w, 2, 'dp')
    del w
    w_full = c10d_wait_tensor(w_gather)
    del w_gather
    for micro in range(3):
        x_micro = zc_micro_slice(x, micro, 3)
        mm = aten_mm(x_micro, w_full)
        pow_1 = aten_pow_Tensor_Scalar(mm, 2)
        mean = aten_mean(pow_1)
        del pow_1
        ones_like = aten_ones_like(mean, pin_memory=False, memory_format=const_memory_format)
        expand = aten_expand(ones_like, [2, 4])
        del ones_like
        div = aten_div_Scalar(expand, 8)
        del expand
        pow_2 = aten_pow_Tensor_Scalar(mm, 1.0)
        del mm
        mul = aten_mul_Scalar(pow_2, 2.0)
        del pow_2
        mul_1 = aten_mul_Tensor(div, mul)
        del div, mul
        t = aten_t(x_micro)
        del x_micro
        mm_1 = aten_mm(t, mul_1)
        del t, mul_1
        w_grad_scatter = c10d_reduce_scatter_tensor(mm_1, 'avg', 2, 'dp')
        del mm_1
        w_grad = c10d_wait_tensor_1(w_grad_scatter)
        del w_grad_scatter
        w_grad_add = aten_add__Tensor(w_grad_sum, w_grad, alpha=0.3333333333333333)
        del w_grad
        detach = aten_detach(mean)
        del mean
        loss_add = aten_add__Tensor(loss_sum, detach, alpha=0.3333333333333333)
        del detach
    del micro, loss_sum, w_grad_sum, w_full, x
    return [loss_add, w_grad_add]
