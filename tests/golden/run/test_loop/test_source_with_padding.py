def step(args):
    w0, w1, x, = args
    args.clear()
    w0 = storage_of(w0, layout)
    w1 = storage_of(w1, layout_1)
    w0_gather = c10d_all_gather_into_tensor(w0, 4, 'dp')
    del w0
    w0_full = c10d_wait_tensor(w0_gather)
    del w0_gather
    w0_view = aten_view(w0_full, [4, 32])
    del w0_full
    w0_slice = aten_slice_Tensor(w0_view, 1, 0, 20)
    del w0_view
    w0_clone = aten_clone(w0_slice, memory_format=const_memory_format)
    del w0_slice
    w0_unpacked = aten_view(w0_clone, [16, 5])
    del w0_clone
    mm = aten_mm(x, w0_unpacked)
    del w0_unpacked
    tanh = aten_tanh(mm)
    del mm
    detach = aten_detach(tanh)
    add = aten_add_Tensor(tanh, 1)
    del tanh
    w1_gather = c10d_all_gather_into_tensor_1(w1, 4, 'dp')
    w1_full = c10d_wait_tensor_1(w1_gather)
    del w1_gather
    w1_slice = aten_slice_Tensor(w1_full, 0, 0, 5)
    del w1_full
    mm_1 = aten_mm(add, w1_slice)
    del w1_slice
    tanh_1 = aten_tanh(mm_1)
    del mm_1
    detach_1 = aten_detach(tanh_1)
    add_1 = aten_add_Tensor(tanh_1, 1)
    del tanh_1
    sum_1 = aten_sum(add_1)
    del add_1
    ones_like = aten_ones_like(sum_1, pin_memory=False, memory_format=const_memory_format_1)
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
    w1_constant_pad_nd = aten_constant_pad_nd(mm_2, [0, 0, 0, 3], 0.0)
    del mm_2
    w1_grad_scatter = c10d_reduce_scatter_tensor(w1_constant_pad_nd, 'avg', 4, 'dp')
    del w1_constant_pad_nd
    w1_grad = c10d_wait_tensor_2(w1_grad_scatter)
    del w1_grad_scatter
    w1_gather_1 = c10d_all_gather_into_tensor_2(w1, 4, 'dp')
    del w1
    w1_full_again = c10d_wait_tensor_3(w1_gather_1)
    del w1_gather_1
    w1_slice_1 = aten_slice_Tensor(w1_full_again, 0, 0, 5)
    del w1_full_again
    t_1 = aten_t(w1_slice_1)
    del w1_slice_1
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
    w0_view_1 = aten_view(mm_4, [4, 20])
    del mm_4
    w0_constant_pad_nd = aten_constant_pad_nd(w0_view_1, [0, 12], 0.0)
    del w0_view_1
    w0_view_2 = aten_view(w0_constant_pad_nd, [128])
    del w0_constant_pad_nd
    w0_grad_scatter = c10d_reduce_scatter_tensor_1(w0_view_2, 'avg', 4, 'dp')
    del w0_view_2
    w0_grad = c10d_wait_tensor_4(w0_grad_scatter)
    del w0_grad_scatter
    return [sum_1, local_view(w0_grad, layout, (4, 5)), local_view(w1_grad, layout_1, (2, 16))]
