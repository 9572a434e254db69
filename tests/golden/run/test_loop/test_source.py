def step(args):
    w0, w1, x, = args
    args.clear()
    w0_gather = c10d_all_gather_into_tensor(w0, 4, 'dp')
    del w0
    w0_full = c10d_wait_tensor(w0_gather)
    del w0_gather
    mm = aten_mm(x, w0_full)
    del w0_full
    tanh = aten_tanh(mm)
    del mm
    detach = aten_detach(tanh)
    add = aten_add_Tensor(tanh, 1)
    del tanh
    w1_gather = c10d_all_gather_into_tensor_1(w1, 4, 'dp')
    w1_full = c10d_wait_tensor_1(w1_gather)
    del w1_gather
    mm_1 = aten_mm(add, w1_full)
    del w1_full
    tanh_1 = aten_tanh(mm_1)
    del mm_1
    detach_1 = aten_detach(tanh_1)
    add_1 = aten_add_Tensor(tanh_1, 1)
    del tanh_1
    sum_1 = aten_sum(add_1)
    del add_1
    ones_like = aten_ones_like(sum_1, pin_memory=False, memory_format=const_memory_format)
    expand = aten_expand(ones_like, [4, 16])
    del ones_like
    detach_2 = aten_detach(detach_1)
    del detach_1
    tanh_backward = aten_tanh_backward(expand, detach_2)
    del expand, detach_2
    t = aten_t(add)
    del add
    mm_2 = aten_mm(t, tanh_backward)
    del t
    w1_grad_scatter = c10d_reduce_scatter_tensor(mm_2, 'avg', 4, 'dp')
    del mm_2
    w1_grad = c10d_wait_tensor_2(w1_grad_scatter)
    del w1_grad_scatter
    w1_gather_1 = c10d_all_gather_into_tensor_2(w1, 4, 'dp')
    del w1
    w1_full_again = c10d_wait_tensor_3(w1_gather_1)
    del w1_gather_1
    t_1 = aten_t(w1_full_again)
    del w1_full_again
    mm_3 = aten_mm(tanh_backward, t_1)
    del tanh_backward, t_1
    detach_3 = aten_detach(detach)
    del detach
    tanh_backward_1 = aten_tanh_backward(mm_3, detach_3)
    del mm_3, detach_3
    t_2 = aten_t(x)
    del x
    mm_4 = aten_mm(t_2, tanh_backward_1)
    del t_2, tanh_backward_1
    w0_grad_scatter = c10d_reduce_scatter_tensor_1(mm_4, 'avg', 4, 'dp')
    del mm_4
    w0_grad = c10d_wait_tensor_4(w0_grad_scatter)
    del w0_grad_scatter
    return [sum_1, w0_grad, w1_grad]
